#!/usr/bin/env python3
"""Times optimization steps on a GPU, llsteer's and PyTorch's alternately in one call, and
decoding with and without steering. scripts/cuda-check.sh calls it.

    bench/cuda/run.py [--shapes 2b,9b] [--types q8_0,q4_k,bf16] [--folder FOLDER]

The work is that of bench/cpu/run.py: a prompt of 64 tokens, one completion of 13 tokens to
suppress and one to promote, a vector at layer 10 of Gemma-2's shape, random weights, which
random_gguf.py writes. The floor is what no implementation can go below: the weights of the
blocks from the steered layer up and of the head, read twice at the measured copy rate, or the
operations at the measured matrix rate, whichever takes longer.

Each is timed without CUDA graphs and with them (docs/cuda.md).

Prints a table and writes bench/results/cuda-step.json. Without PyTorch there is no floor and no
comparison, only times. Needs numpy."""
import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT/"bench/cpu"))
from run import Worker  # noqa: E402

# blocks, width, feed-forward, heads, key-value heads, head, vocabulary, steered layer
SHAPES = {"2b": (26, 2304, 9216, 8, 4, 256, 256000, 10), "9b": (42, 3584, 14336, 16, 8, 256, 256000, 10), "tiny": (4, 256, 1024, 4, 2, 64, 2048, 1)}
BYTES = {"q8_0": 34/32, "q4_k": 144/256, "bf16": 2}
VARIANTS = ("as_shipped", "frozen", "hand_tuned", "compiled")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", default="2b,9b")
    p.add_argument("--types", default="q8_0,q4_k,bf16")
    p.add_argument("--folder", type=pathlib.Path, default=ROOT/"build/gpu", help="of the models and of the program bench-step")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--gpu-layers", type=int, default=-1)
    p.add_argument("--device", default="cuda", help="PyTorch's")
    p.add_argument("--out", type=pathlib.Path, default=ROOT/"bench/results/cuda-step.json")
    args = p.parse_args()
    torch = importlib.util.find_spec("torch") is not None
    results = []
    for shape in args.shapes.split(","):
        blocks, width, ff, heads, kv, head, vocab, layer = SHAPES[shape]
        ours, workers = {}, []
        for type in args.types.split(","):
            model = args.folder/f"random-{shape}-{type}.gguf"
            if not model.exists():
                subprocess.run([sys.executable, HERE/"random_gguf.py", "--shape", shape, "--type", type, str(model) + ".new"], check=True)
                pathlib.Path(str(model) + ".new").rename(model)
            for precision in ("bf16", "f32"):
                for graphs in (0, 1):
                    ours[type, precision, graphs] = ["env", f"LLSTEER_CUDA_GRAPHS={graphs}", args.folder/"bench-step", "-m", model, "-ngl", args.gpu_layers, "-layer", layer, "-precision", precision]
        times, about = {}, {}
        reference = None
        if torch:
            reference = Worker([sys.executable, ROOT/"bench/cpu/torch_step.py", "--device", args.device, "--blocks", blocks, "--width", width, "--ff", ff, "--heads", heads,
                                "--kv-heads", kv, "--head", head, "--vocab", vocab, "--layer", layer])
            about = reference.about
        for key, command in ours.items():  # one model on the GPU at a time, beside PyTorch's
            mine = Worker(command)
            tokens = mine.about["tokens"]
            for round in range(-3, args.rounds):
                seconds = mine.step()
                if round >= 0:
                    times.setdefault(key, []).append(seconds)
                for variant in VARIANTS if reference else ():
                    seconds = reference.step(variant)["seconds"]
                    if round >= 0:
                        times.setdefault(variant, []).append(seconds)
            mine.close()
        if reference:
            reference.close()

        rows = 1 + 2*12
        weights = (width*(heads*head*2 + kv*head*2 + 3*ff))*(blocks - layer) + width*vocab
        flops = 2*2*(tokens*(weights - width*vocab) + rows*width*vocab)
        median = {k: statistics.median(v) for k, v in times.items()}
        print(f"\n{shape}: {tokens} tokens, {flops/1e9:.0f} GFLOP; {about.get('device', 'no PyTorch')}")
        if about.get("copied_bytes_per_second"):
            print(f"copies {about['copied_bytes_per_second']/1e9:.0f} GB/s, bfloat16 {about['bfloat16_flops_per_second']/1e12:.0f} TFLOP/s")
        for (type, precision, graphs) in ours:
            t = median[type, precision, graphs]
            line = {"shape": shape, "type": type, "precision": precision, "graphs": bool(graphs), "seconds": times[type, precision, graphs]}
            text = f"  {type:5} {precision:4} {'graphs' if graphs else '':6} {1e3*t:9.2f} ms"
            if about.get("copied_bytes_per_second"):
                floor = max(2*weights*BYTES[type]/about["copied_bytes_per_second"], flops/about["bfloat16_flops_per_second"])
                line |= {"floor": floor, "of_floor": t/floor} | {v: median[v]/t for v in VARIANTS}
                text += f"  {t/floor:5.2f} times the floor of {1e3*floor:.2f} ms;" + "".join(f"  {v} {median[v]/t:.2f} times" for v in VARIANTS)
            print(text)
            results.append(line)
        results.append({"shape": shape, "torch": {v: times[v] for v in VARIANTS if v in times}, "about": about})
        decode = args.folder/"bench-decode"
        if decode.exists() and args.gpu_layers:
            for type in args.types.split(","):
                print(f"  decoding, {type}:", flush=True)
                subprocess.run([decode, "-m", args.folder/f"random-{shape}-{type}.gguf", "-ngl", str(args.gpu_layers)], check=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
