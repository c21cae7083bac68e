#!/usr/bin/env python3
"""A training step in PyTorch on the CPU, to compare Weft's with.

One step is forward, backward, clipping to norm 1 and AdamW, in float32. Byte vocabulary, 4 heads, pre-norm RMSNorm,
SwiGLU with d_ff = 4 d, untied head. Two mixers:

  transformer   scaled_dot_product_attention, per-head QK-norm, RoPE
  gated_delta   the gated delta net of Olmo Hybrid (key 0.75 d / heads, value twice that, convolution of width 4, output
                gate, negative eigenvalues) in its chunked form, the fastest of several chunk lengths and ways to solve
                the triangular systems inside a chunk

  train_step_pytorch.py --threads 2                        prints one JSON line per model and shape
  weft-bench-step ... | train_step_pytorch.py --weft-json -   also reads such lines from Weft and prints the ratios
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, HEADS, CONV, ROPE_THETA = 256, 4, 4, 500000.0
SHAPES = {"small": dict(d=128, L=4, T=256, B=16), "large": dict(d=256, L=4, T=1024, B=8)}


class RmsNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, d, length):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        dim = d // HEADS
        self.q_norm, self.k_norm = RmsNorm(dim), RmsNorm(dim)
        angle = torch.outer(torch.arange(length), ROPE_THETA ** (-torch.arange(0, dim, 2) / dim))
        self.register_buffer("cos", angle.cos().repeat(1, 2))
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], 1))

    def rotate(self, x):
        return x * self.cos + x.roll(x.shape[-1] // 2, -1) * self.sin

    def forward(self, x):
        B, T, d = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(self.q_norm(q)), self.rotate(self.k_norm(k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, d))


def gated_delta_recurrent(q, k, v, beta, g):
    """The definition, token by token. q, k [B,H,T,K], v [B,H,T,V], beta and g = log decay [B,H,T]."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        S = g[:, :, t, None, None].exp() * S
        read = torch.einsum("bhk,bhkv->bhv", k[:, :, t], S)
        delta = beta[:, :, t, None] * (v[:, :, t] - read)
        S = S + k[:, :, t, :, None] * delta[:, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], S) / math.sqrt(q.shape[-1]))
    return torch.stack(out, 2)


def solve_triangular(N, rhs):
    return torch.linalg.solve_triangular(N, rhs, upper=False, unitriangular=True)


def solve_doubling(N, rhs):
    """(I + N)^-1 rhs for a strictly lower triangular N, by (I + N)^-1 = (I - N)(I + N^2)(I + N^4)..."""
    power, reach = -N, 1
    while True:
        rhs = rhs + power @ rhs
        reach *= 2
        if reach >= N.shape[-1]:
            return rhs
        power = power @ power


SOLVERS = {"triangular": solve_triangular, "doubling": solve_doubling}


def gated_delta_chunked(q, k, v, beta, g, chunk, solver):
    """The same in chunks: everything inside a chunk is batched over chunks, the state goes from chunk to chunk."""
    B, H, T, K = q.shape
    V = v.shape[-1]
    if T % chunk:
        raise ValueError(f"length {T} is not a multiple of the chunk {chunk}")
    q, k, v = (x.reshape(B, H, T // chunk, chunk, -1) for x in (q / math.sqrt(K), k, v))
    beta, g = (x.reshape(B, H, T // chunk, chunk, 1) for x in (beta, g))
    G = g.cumsum(-2)
    lower = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decay = (G - G.transpose(-1, -2)).masked_fill(~lower, -torch.inf).exp()
    kt = k.transpose(-1, -2)
    N = (beta * (k @ kt) * decay).tril(-1)
    decayed = G.exp()
    U, W = solver(N, torch.cat([beta * v, beta * decayed * k], -1)).split([V, K], -1)
    P = (q @ kt) * decay
    q, k_end = q * decayed, k * (G[..., -1:, :] - G).exp()
    end = decayed[..., -1:, :]
    S = q.new_zeros(B, H, K, V)
    out = []
    for c in range(T // chunk):
        delta = U[:, :, c] - W[:, :, c] @ S
        out.append(q[:, :, c] @ S + P[:, :, c] @ delta)
        S = end[:, :, c] * S + k_end[:, :, c].transpose(-1, -2) @ delta
    return torch.cat(out, 2)


class GatedDelta(nn.Module):
    def __init__(self, d, chunk, solver):
        super().__init__()
        self.chunk, self.solver = chunk, SOLVERS[solver]
        self.K = int(0.75 * d / HEADS)
        self.V = 2 * self.K
        mixed = HEADS * (2 * self.K + self.V)
        self.widths = [mixed, HEADS * self.V, HEADS, HEADS]
        self.project = nn.Linear(d, sum(self.widths), bias=False)
        self.conv = nn.Parameter(torch.empty(mixed, 1, CONV).uniform_(-0.5, 0.5))
        self.A_log = nn.Parameter(torch.empty(HEADS).uniform_(1, 16).log())
        dt = torch.empty(HEADS).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(dt + (-(-dt).expm1()).log())
        self.norm, self.out = RmsNorm(self.V, 1e-5), nn.Linear(HEADS * self.V, d, bias=False)

    def forward(self, x):
        B, T, _ = x.shape
        mixed, gate, a, b = self.project(x).split(self.widths, -1)
        mixed = F.conv1d(F.pad(mixed.transpose(1, 2), (CONV - 1, 0)), self.conv, groups=self.conv.shape[0])
        mixed = F.silu(mixed).transpose(1, 2)
        heads = lambda y: y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        q, k, v = (heads(y) for y in mixed.split([HEADS * self.K, HEADS * self.K, HEADS * self.V], -1))
        q, k = (y * torch.rsqrt((y * y).sum(-1, keepdim=True) + 1e-6) for y in (q, k))
        beta = 2 * torch.sigmoid(b)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        y = gated_delta_chunked(q, k, v, beta.transpose(1, 2), g.transpose(1, 2), self.chunk, self.solver)
        y = self.norm(y.transpose(1, 2)) * F.silu(gate.unflatten(-1, (HEADS, -1)))
        return self.out(y.flatten(2))


class Mlp(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gate_up, self.down = nn.Linear(d, 8 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, d, mixer):
        super().__init__()
        self.mixer_norm, self.mixer, self.mlp_norm, self.mlp = RmsNorm(d), mixer, RmsNorm(d), Mlp(d)

    def forward(self, x):
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    def __init__(self, d, L, mixer):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, d)
        self.blocks = nn.Sequential(*[Block(d, mixer()) for _ in range(L)])
        self.norm, self.head = RmsNorm(d), nn.Linear(d, VOCAB, bias=False)

    def forward(self, tokens, labels):
        x = self.norm(self.blocks(self.embedding(tokens)))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def time_step(model, shape, steps, compiled):
    B, T = shape["B"], shape["T"]
    text = torch.randint(0, VOCAB, (B, T + 1))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    parameters = decayed + others
    forward = torch.compile(model) if compiled else model
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = forward(text[:, :-1], text[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"the loss became {loss.item()}")
    return seconds[3:]


def check_chunked():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 128, 8).double(), torch.randn(2, 3, 128, 8).double(), torch.randn(2, 3, 128, 5).double()
    k = F.normalize(k, dim=-1)
    beta, g = 2 * torch.rand(2, 3, 128).double(), -0.3 * torch.rand(2, 3, 128).double()
    want = gated_delta_recurrent(q, k, v, beta, g)
    for solver in SOLVERS:
        for chunk in (32, 64):
            error = (gated_delta_chunked(q, k, v, beta, g, chunk, SOLVERS[solver]) - want).abs().max().item()
            if error > 1e-10:
                raise RuntimeError(f"chunk {chunk}, solver {solver}: differs from the recurrence by {error}")


def variants(model, shape, chunks):
    if model == "transformer":
        yield {}, lambda: Attention(shape["d"], shape["T"])
    else:
        for chunk in chunks:
            for solver in SOLVERS:
                yield dict(chunk=chunk, solver=solver), lambda: GatedDelta(shape["d"], chunk, solver)


def measure(model, shape, args):
    best = None
    for settings, mixer in variants(model, shape, args.chunks):
        torch.manual_seed(0)
        seconds = time_step(Model(shape["d"], shape["L"], mixer), shape, args.steps, args.compile)
        row = {
            "model": model,
            "shape": "d{d}_L{L}_T{T}_B{B}".format(**shape),
            "ms": round(1e3 * statistics.median(seconds), 2),
            "ms_min": round(1e3 * min(seconds), 2),
            "tokens_per_s": round(shape["B"] * shape["T"] / statistics.median(seconds)),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compiled": args.compile,
            **settings,
        }
        if args.verbose:
            print(json.dumps(row), file=sys.stderr, flush=True)
        if best is None or row["ms"] < best["ms"]:
            best = row
    return best


def read_rows(path):
    """JSON lines, or one JSON list, with the keys model, shape and ms."""
    with sys.stdin if path == "-" else open(path) as file:
        text = file.read().strip()
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    return {(row["model"], row["shape"]): row for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9, help="timed steps after 3 warm-up steps (at least 7)")
    parser.add_argument("--model", choices=["transformer", "gated_delta"], action="append", help="default: both")
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="default: both")
    parser.add_argument("--chunks", type=int, nargs="+", default=[32, 64], help="chunk lengths to try")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--verbose", action="store_true", help="every variant, on stderr")
    parser.add_argument("--weft-json", metavar="FILE", help="Weft's rows, - for standard input")
    args = parser.parse_args()
    if args.steps < 7:
        parser.error(f"--steps is {args.steps}, expected at least 7")
    weft = read_rows(args.weft_json) if args.weft_json else {}
    torch.set_num_threads(args.threads)
    check_chunked()
    rows = []
    for model in args.model or ["transformer", "gated_delta"]:
        for shape in args.shape or SHAPES:
            rows.append(measure(model, SHAPES[shape], args))
            print(json.dumps(rows[-1]), flush=True)
    if weft:
        print(f"\n{'model':<14}{'shape':<20}{'PyTorch ms':>12}{'Weft ms':>10}{'Weft is':>10}")
        for row in rows:
            ours = weft.get((row["model"], row["shape"]))
            text = f"{ours['ms']:>10.1f}{row['ms'] / ours['ms']:>9.2f}x" if ours else f"{'-':>10}{'-':>10}"
            print(f"{row['model']:<14}{row['shape']:<20}{row['ms']:>12.1f}{text}")


if __name__ == "__main__":
    main()
