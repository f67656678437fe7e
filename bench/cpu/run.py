#!/usr/bin/env python3
"""Times optimization steps of llsteer and of PyTorch on the CPU, alternately in one call.

    make && bench/make_model.py FOLDER && bench/cpu/run.py FOLDER

The work is one step of the tutorial's example in Gemma-2-2B's shape: a prompt of 64 tokens,
one completion of 13 tokens to suppress and one to promote, a vector at layer 10, two threads,
random weights (bench/make_model.py). torch_step.py says what PyTorch's variants do; its
hand-tuned one runs in bfloat16 and in float32, and the faster of them counts.

Prints a table and writes bench/results/cpu-step.json. Ratios are of times in the same round,
their median over the rounds with the smallest and the largest. Needs torch and numpy."""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Worker:
    """A program that does a step for each line that it is given."""

    def __init__(self, command):
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]} ended")
        return json.loads(line)

    def step(self, variant=""):
        self.process.stdin.write(variant + "\n")
        self.process.stdin.flush()
        return self.answer()

    def memory(self, field):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1])*1024 for line in f if line.startswith(field))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=pathlib.Path, help="with the models")
    p.add_argument("--shape", default="2b")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--without", default="", help="columns to leave out, with commas between them")
    p.add_argument("--out", type=pathlib.Path, default=ROOT/"bench/results/cpu-step.json")
    args = p.parse_args()
    blocks, width, ff, heads, kv, head, vocab, layer = {
        "2b": (26, 2304, 9216, 8, 4, 256, 256000, 10), "tiny": (4, 256, 1024, 4, 2, 64, 2048, 1)}[args.shape]
    prompt, completion = 64, 13

    program = ROOT/"build/bench-cpu"
    subprocess.run(["go", "build", "-o", program, "./bench/cpu"], check=True, cwd=ROOT)
    model = lambda t: args.folder/f"gemma2-{args.shape}-{t}.gguf"
    ours = lambda t, *more: lambda: Worker([program, "-m", model(t), "-t", args.threads, "-layer", layer, *more])
    torch = lambda dtype: lambda: Worker([sys.executable, HERE/"torch_step.py", "--dtype", dtype, "--threads", args.threads, "--blocks", blocks, "--width", width,
        "--ff", ff, "--heads", heads, "--kv-heads", kv, "--head", head, "--vocab", vocab, "--layer", layer])
    columns = {
        "q8_0": (ours("q8_0"), ""), "q4_k_m": (ours("q4_k_m"), ""), "bf16": (ours("bf16"), ""), "q8_0 f32": (ours("q8_0", "-precision", "f32"), ""),
        "8 examples": (ours("q8_0", "-examples", "8"), ""),
        "as shipped": (torch("bfloat16"), "as_shipped"), "frozen": (torch("bfloat16"), "frozen"), "hand-tuned": (torch("bfloat16"), "hand_tuned"),
        "hand-tuned f32": (torch("float32"), "hand_tuned"),
    }
    columns = {k: v for k, v in columns.items() if k not in args.without.split(",")}
    times, peaks, rates, tokens = {k: [] for k in columns}, {}, {}, 0
    pairs = {k: [] for k in columns}  # with the time of q8_0 in the same round

    # Two programs at a time: with more, memory would hold some of their weights but not all, and a step would read the rest from disk.
    for other in [k for k in columns if k != "q8_0"] or [None]:
        workers = {}
        try:
            for name in filter(None, ("q8_0", other)):
                workers[name] = columns[name][0]()
            tokens = workers["q8_0"].about["tokens"]
            for round in range(-1, args.rounds):  # the first warms up
                for name, worker in workers.items():
                    variant = columns[name][1]
                    a = worker.step(variant)
                    seconds = a["seconds"] if variant else a
                    if name == "q8_0":
                        reference = seconds
                    if variant:
                        rates |= worker.about["flops_per_second"]
                    if round >= 0:
                        times[name].append(seconds)
                        pairs[name].append((seconds, reference))
                        peaks[name] = max(peaks.get(name, 0), a["peak_bytes"] if variant else worker.memory("VmHWM"))
                        print(f"{name} {seconds:.3f} s", file=sys.stderr)
        finally:
            for w in workers.values():
                w.close()

    rows = 1 + 2*(completion - 1)
    block = 2*width*(heads*head*2 + kv*head*2 + 3*ff)
    flops = 2*tokens*block*(blocks - layer) + 2*rows*2*width*vocab  # forward and backward
    peak = max((r["512"] for r in rates.values()), default=0)

    def ratio(name):
        r = sorted(a/b for a, b in pairs[name])
        return statistics.median(r), r[0], r[-1]

    print(f"{tokens} tokens, {rows} rows of logits, {flops/1e9:.0f} GFLOP a step, {args.threads} threads")
    print("matrix products of PyTorch, GF/s at 96 and 512 columns: " + ", ".join(f"{k} {v['96']/1e9:.0f} and {v['512']/1e9:.0f}" for k, v in rates.items()))
    print(f"{'':>15} {'seconds':>8} {'GF/s':>6} {'peak GB':>8}   times of q8_0: median (smallest to largest)")
    for name in columns:
        t = statistics.median(times[name])
        print(f"{name:>15} {t:8.3f} {flops/t/1e9:6.0f} {peaks[name]/1e9:8.2f}   " + "%.2f (%.2f to %.2f)" % ratio(name))
    hand = [n for n in ("hand-tuned", "hand-tuned f32") if n in columns]
    result = {
        "shape": args.shape, "threads": args.threads, "rounds": args.rounds, "tokens": tokens, "flop": flops,
        "seconds": times, "peak_bytes": peaks, "torch_flops_per_second": rates,
        "peak_rss_bytes": peaks["q8_0"], "model_bytes": model("q8_0").stat().st_size,
        "fraction_of_peak": flops/statistics.median(times["q8_0"])/peak if peak else None,
    }
    for key, name in (("ratio_as_shipped", "as shipped"), ("ratio_frozen", "frozen"), ("ratio_q4_k_m", "q4_k_m"), ("ratio_8_examples", "8 examples")):
        if name in columns:
            result[key] = ratio(name)[0]
    if hand:
        result["ratio_hand_tuned"] = min(ratio(n)[0] for n in hand)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
