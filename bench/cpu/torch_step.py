"""Optimization steps in PyTorch for bench/cpu/run.py and bench/cuda/run.py, on a model in Gemma-2's shape with
random weights. Prints a line of JSON, then for every line that it reads, the name of a
variant, the seconds of a step and the peak memory during it:

as_shipped  a pass for each completion over prompt and completion, all blocks, logits at all
            positions, every weight with requires_grad
frozen      the same, with weights that need no gradient
hand_tuned  all tokens in one batch, the prompt once; only the blocks from the steered layer up,
            what is below them kept; logits only where a completion token follows; of the last
            block only what these need
compiled    what hand_tuned does, through torch.compile
"""
import argparse
import json
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, c, dtype):
        super().__init__()
        self.c = c
        linear = lambda n, m: nn.Linear(n, m, bias=False, dtype=dtype)
        self.q, self.k, self.v = (linear(c.width, h*c.head) for h in (c.heads, c.kv_heads, c.kv_heads))
        self.o = linear(c.heads*c.head, c.width)
        self.gate, self.up, self.down = linear(c.width, c.ff), linear(c.width, c.ff), linear(c.ff, c.width)
        self.norms = nn.ParameterList(torch.ones(c.width, dtype=dtype) for _ in range(4))

    def norm(self, i, x):
        y = x.float()
        return (y*torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)*self.norms[i].float()).to(x.dtype)

    def heads(self, x, n):
        return x.view(-1, n, self.c.head).transpose(0, 1)

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return x*cos + torch.cat((-b, a), -1)*sin

    # x: [tokens, width]; rows: those whose output is wanted, None: all
    def forward(self, x, mask, cos, sin, rows=None):
        c, h = self.c, self.norm(0, x)
        k, v = self.heads(self.k(h), c.kv_heads), self.heads(self.v(h), c.kv_heads)
        if rows is not None:
            x, h, mask, cos_q, sin_q = x[rows], h[rows], mask[rows], cos[rows], sin[rows]
        else:
            cos_q, sin_q = cos, sin
        q = self.rotate(self.heads(self.q(h), c.heads), cos_q, sin_q)
        k = self.rotate(k, cos, sin)
        k, v = (t.repeat_interleave(c.heads//c.kv_heads, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2)*c.head**-0.5
        scores = torch.tanh(scores/50)*50 + mask
        p = torch.softmax(scores, -1, dtype=torch.float32).to(x.dtype)
        x = x + self.norm(1, self.o((p @ v).transpose(0, 1).reshape(len(x), -1)))
        h = self.norm(2, x)
        return x + self.norm(3, self.down(F.gelu(self.gate(h), approximate="tanh")*self.up(h)))


class Model(nn.Module):
    def __init__(self, c, dtype):
        super().__init__()
        self.c, self.dtype = c, dtype
        self.embed = nn.Embedding(c.vocab, c.width, dtype=dtype)
        nn.init.normal_(self.embed.weight, std=c.width**-0.5)
        self.blocks = nn.ModuleList(Block(c, dtype) for _ in range(c.blocks))
        self.last = nn.Parameter(torch.ones(c.width, dtype=dtype))

    def place(self, positions):
        angles = positions[:, None].float()/10000**(torch.arange(0, self.c.head, 2)/self.c.head)
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def start(self, tokens):
        return self.embed(tokens)*math.sqrt(self.c.width)

    def logits(self, x):
        y = x.float()
        x = (y*torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)*self.last.float()).to(x.dtype)
        return torch.tanh((x @ self.embed.weight.t()).float()/30)*30


class Steps:
    def __init__(self, c, dtype):
        torch.manual_seed(1)
        self.c, self.model = c, Model(c, dtype)
        draw = lambda n: torch.randint(260, c.vocab, (n,))
        self.prompt, self.completions = draw(c.prompt), [draw(c.completion) for _ in range(2)]
        self.vector = torch.zeros(c.width, dtype=torch.float32, requires_grad=True)
        self.prepare()

    def mask_of(self, sees):
        return torch.zeros(sees.shape).masked_fill(~sees, -math.inf).to(self.model.dtype)

    # the sum over tokens of log p, with the sign of the completion's loss
    def objective(self, logits, targets, sign):
        return sign*F.log_softmax(logits, -1)[torch.arange(len(targets)), targets].sum()

    def pass_by_pass(self):
        for sign, completion in zip((1, -1), self.completions):
            tokens = torch.cat((self.prompt, completion))
            n = len(tokens)
            mask = self.mask_of(torch.ones(n, n).tril().bool())
            cos, sin = self.model.place(torch.arange(n))
            x = self.model.start(tokens)
            for i, block in enumerate(self.model.blocks):
                if i == self.c.layer:
                    x = x + self.vector.to(x.dtype)
                x = block(x, mask, cos, sin)
            logits = self.model.logits(x)
            self.objective(logits[self.c.prompt - 1:-1], completion, sign).backward()

    def as_shipped(self):
        self.model.requires_grad_(True)
        self.pass_by_pass()
        for p in self.model.parameters():
            p.grad = None

    def frozen(self):
        self.model.requires_grad_(False)
        self.pass_by_pass()

    # a completion's last token predicts nothing and is left out
    def prepare(self):
        p, n = self.c.prompt, self.c.completion - 1
        tokens = torch.cat([self.prompt] + [t[:-1] for t in self.completions])
        sees = torch.ones(p + 2*n, p + 2*n).tril().bool()
        sees[p + n:, p:p + n] = False
        self.mask = self.mask_of(sees)
        self.place = self.model.place(torch.cat([torch.arange(p)] + [torch.arange(p, p + n)]*2))
        self.rows = torch.arange(p - 1, p + 2*n)
        with torch.no_grad():
            x = self.model.start(tokens)
            for block in self.model.blocks[:self.c.layer]:
                x = block(x, self.mask, *self.place)
        self.below = x

    def hand_tuned(self):
        self.model.requires_grad_(False)
        self.of_batch(self.vector).backward()

    def compiled(self):
        self.model.requires_grad_(False)
        if not hasattr(self, "of_batch_compiled"):
            self.of_batch_compiled = torch.compile(self.of_batch)
        self.of_batch_compiled(self.vector).backward()

    def of_batch(self, vector):
        x = self.below + vector.to(self.below.dtype)
        blocks = self.model.blocks[self.c.layer:]
        for i, block in enumerate(blocks):
            x = block(x, self.mask, *self.place, rows=self.rows if i == len(blocks) - 1 else None)
        logits, n = self.model.logits(x), self.c.completion - 1
        first, second = logits[:1 + n], torch.cat((logits[:1], logits[1 + n:]))
        return self.objective(first, self.completions[0], 1) + self.objective(second, self.completions[1], -1)


def memory(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1])*1024 for line in f if line.startswith(field))


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_rate():
    x = torch.empty(1 << 30, dtype=torch.uint8)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        x.clone()
        wait()
        best = min(best, time.perf_counter() - began)
    return 2*len(x)/best


def matrix_rate(dtype, columns):
    w, x = torch.randn(9216, 2304).to(dtype), torch.randn(columns, 2304).to(dtype)
    best = math.inf
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            F.linear(x, w)
            wait()
            best = min(best, time.perf_counter() - began)
    return 2*9216*2304*columns/best


def main():
    p = argparse.ArgumentParser()
    for name, value in dict(blocks=26, width=2304, ff=9216, heads=8, kv_heads=4, head=256, vocab=256000, layer=10, prompt=64, completion=13, threads=2).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    p.add_argument("--device", default="cpu")
    c = p.parse_args()
    torch.set_num_threads(c.threads)
    torch.set_default_device(c.device)
    rates = {str(d)[6:]: {n: matrix_rate(d, n) for n in (96, 512)} for d in (torch.bfloat16, torch.float32)}
    steps = Steps(c, getattr(torch, c.dtype))
    about = {"torch": torch.__version__, "flops_per_second": rates}
    if c.device != "cpu":
        about |= {"device": torch.cuda.get_device_name(), "copied_bytes_per_second": copy_rate(), "bfloat16_flops_per_second": matrix_rate(torch.bfloat16, 8192)}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak begins anew
        began = time.perf_counter()
        getattr(steps, line.strip())()
        wait()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak_bytes": memory("VmHWM") if c.device == "cpu" else torch.cuda.max_memory_allocated()}), flush=True)


if __name__ == "__main__":
    main()
