#!/usr/bin/env python3
"""Causal attention in PyTorch through cuDNN beside Weft's: bf16, q, k and v slices of one tensor [B, T, 3HD].

A time is the median of 30 replays of a CUDA graph; both sides take turns, and the row has the median over the rounds.
PyTorch's backward asks cuDNN for sums in any order, so its bits differ from run to run; Weft's do not.

  attention_pytorch.py [--weft build/cuda/bin/attention_bench]     prints one JSON line per shape and direction
"""

import argparse
import json
import statistics
import subprocess

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [(16, 2048, 6, 128), (4, 4096, 16, 128), (32, 1024, 4, 64), (8, 8192, 16, 128)]
REPEATS = 30


def milliseconds(call):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    times = []
    for _ in range(REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def time_pytorch(B, T, H, D):
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3, H, D, device="cuda", dtype=torch.bfloat16)
    q, k, v = (qkv[:, :, i].transpose(1, 2).detach().requires_grad_(True) for i in range(3))
    dy = torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    attention = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield "fwd", milliseconds(attention)
        yield "fwd_bwd", milliseconds(lambda: torch.autograd.grad(attention(), (q, k, v), dy))


def time_weft(program, shape):
    command = [program, f"--benchmark_filter=^{shape}/", "--benchmark_format=json"]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for row in out["benchmarks"]:
        yield row["name"].split("/")[1], row["real_time"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", metavar="PROGRAM", help="attention_bench of a build with WEFT_BENCH")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for B, T, H, D in SHAPES:
        shape = f"B{B}_T{T}_H{H}_D{D}"
        pytorch, weft = {}, {}
        for _ in range(args.rounds):
            for direction, ms in time_pytorch(B, T, H, D):
                pytorch.setdefault(direction, []).append(ms)
            for direction, ms in time_weft(args.weft, shape) if args.weft else ():
                weft.setdefault(direction, []).append(ms)
        for direction in pytorch:
            row = {"shape": shape, "direction": direction, "pytorch_ms": round(statistics.median(pytorch[direction]), 4)}
            if weft:
                row["weft_ms"] = round(statistics.median(weft[direction]), 4)
                row["weft/pytorch"] = round(row["weft_ms"] / row["pytorch_ms"], 3)
            row |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
                    "device": torch.cuda.get_device_name()}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
