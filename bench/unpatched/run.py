#!/usr/bin/env python3
"""Compares llsteer's decoder, unsteered, with the unpatched library that it is made from: prompts of several
lengths and decoding token by token, both programs by turns in one run. Prints a table of ratios, above 1 where
llsteer is faster, each the median over the pairs with the bounds of its 95 % confidence interval.

    bench/unpatched/run.py [-t 2] [-n 60] [-r 6] MODEL.gguf...
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Program:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.line()

    def line(self):
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit(f"{self.process.args[0]} ended with {self.process.wait()}")
        return text

    def seconds(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.line())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(ours, theirs, what, times):
    """The rates' ratio, ours to theirs, and our median seconds."""
    ratios, seconds = [], []
    for i in range(times):
        order = [ours, theirs] if i % 2 else [theirs, ours]
        took = {p: p.seconds(what) for p in order}
        ratios.append(took[theirs]/took[ours])
        seconds.append(took[ours])
    ratios.sort()
    margin = math.ceil(0.98*math.sqrt(times))  # ranks between which the true median is in 95 of 100 cases
    middle = times//2
    return [ratios[middle], ratios[max(0, middle - margin)], ratios[min(times - 1, middle + margin)]], statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-t", "--threads", default="2")
    parser.add_argument("-n", "--tokens", type=int, default=60, help="tokens to decode")
    parser.add_argument("-r", "--runs", type=int, default=6, help="of each prompt, at least 6 for 95 %%")
    parser.add_argument("-p", "--prompts", default="64,128,256,512", help="their tokens")
    parser.add_argument("-o", "--output", help="a JSON file")
    o = parser.parse_args()
    subprocess.run(["bench/unpatched/build.sh"], cwd=ROOT, check=True)
    subprocess.run(["make", "-s"], cwd=ROOT, check=True)
    subprocess.run(["go", "build", "-o", "build/unpatched/ours", "./bench/unpatched"], cwd=ROOT, check=True)
    result = {}
    for model in map(pathlib.Path, o.models):
        path = str(model.resolve())
        ours = Program("build/unpatched/ours", "-m", path, "-t", o.threads)
        theirs = Program("build/unpatched/prompts", path, o.threads)
        result[model.name] = {}
        for what, times in [(f"prompt {n}", o.runs) for n in o.prompts.split(",")] + [("decode", o.tokens)]:
            for p in (ours, theirs):
                p.seconds(what)  # warms up
            ratio, seconds = compare(ours, theirs, what, times)
            rate = (int(what.split()[1]) if " " in what else 1)/seconds
            result[model.name][what] = {"ratio": ratio, "tokens_per_second": rate}
            print(f"{model.name:28} {what:10} {rate:7.2f} tokens/s, {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) times the unpatched library", flush=True)
        ours.close()
        theirs.close()
    if o.output:
        pathlib.Path(o.output).write_text(json.dumps(result, indent=1) + "\n")


main()
