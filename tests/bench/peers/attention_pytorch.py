#!/usr/bin/env python3
"""Causal attention in PyTorch through cuDNN beside Weft's: bf16, q, k and v slices of one tensor [B, T, 3HD].

A time is the median of 30 replays of a CUDA graph; both sides take turns, and the row has the median over the rounds.
Directions cudnn_* are Weft's own call of cuDNN, where it was built with it. PyTorch and that call let cuDNN's backward
add in any order, so their bits differ from run to run; those of Weft's kernels do not.

  attention_pytorch.py [--weft build/cuda/bin/attention_bench]     prints one JSON line per shape and direction
"""

import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpu

SHAPES = [(16, 2048, 6, 128), (4, 4096, 16, 128), (32, 1024, 4, 64), (8, 8192, 16, 128), (4, 8192, 16, 64)]


def time_pytorch(B, T, H, D):
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3, H, D, device="cuda", dtype=torch.bfloat16)
    q, k, v = (qkv[:, :, i].transpose(1, 2).detach().requires_grad_(True) for i in range(3))
    dy = torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    attention = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        times = {"fwd": gpu.milliseconds(attention),
                 "fwd_bwd": gpu.milliseconds(lambda: torch.autograd.grad(attention(), (q, k, v), dy))}
    for direction, ms in times.items():
        yield direction, ms
        yield f"cudnn_{direction}", ms


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", metavar="PROGRAM", help="attention_bench of a build with WEFT_BENCH")
    parser.add_argument("--only", metavar="TEXT", default="", help="shapes with TEXT in their names")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shapes = {f"B{B}_T{T}_H{H}_D{D}": (B, T, H, D) for B, T, H, D in SHAPES}
    shapes = {name: shape for name, shape in shapes.items() if args.only in name}
    gpu.compare(shapes, time_pytorch, "pytorch", args.weft, args.rounds)


if __name__ == "__main__":
    main()
