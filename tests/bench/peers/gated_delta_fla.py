#!/usr/bin/env python3
"""The gated delta rule of flash-linear-attention beside Weft's: bf16, beta in (0, 2), with decay.

fla normalises q and k inside (its directions are fwd_norm and fwd_bwd_norm) and recomputes states in the backward; Weft
saves them in the forward when a backward follows. fla's backward is miscompiled on Hopper by Triton 3.4 to 3.7.0 and
refuses to run; the refusal is removed here, so its gradients may be wrong and only its time counts.

  gated_delta_fla.py --fla CHECKOUT [--weft build/cuda/bin/gated_delta_bench]   prints one JSON line per shape and direction
"""

import argparse
import sys

import torch

import gpu

SHAPES = [(8, 8192, 30, 96, 192), (8, 8192, 16, 128, 128), (1, 65536, 16, 128, 128)]


def time_fla(B, T, H, K, V):
    import fla.ops.common.chunk_o
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    fla.ops.common.chunk_o.TRITON_ABOVE_3_7_1 = True
    torch.manual_seed(0)
    random = lambda *shape, dtype=torch.bfloat16: torch.randn(*shape, device="cuda", dtype=dtype)
    q, k, v = random(B, T, H, K), random(B, T, H, K), random(B, T, H, V)
    beta = 2 * random(B, T, H).sigmoid()
    log_a = torch.nn.functional.logsigmoid(random(B, T, H, dtype=torch.float32) + 4)
    dy = random(B, T, H, V)
    inputs = [x.requires_grad_(True) for x in (q, k, v, log_a, beta)]
    rule = lambda: chunk_gated_delta_rule(*inputs, use_qk_l2norm_in_kernel=True)[0]
    with torch.no_grad():
        yield "fwd_norm", gpu.milliseconds(rule)
    yield "fwd_bwd_norm", gpu.milliseconds(lambda: torch.autograd.grad(rule(), inputs, dy))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fla", required=True, metavar="DIR", help="a checkout of flash-linear-attention")
    parser.add_argument("--weft", metavar="PROGRAM", help="gated_delta_bench of a build with WEFT_BENCH")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.path.insert(0, args.fla)
    shapes = {f"B{B}_T{T}_H{H}_K{K}_V{V}": (B, T, H, K, V) for B, T, H, K, V in SHAPES}
    gpu.compare(shapes, time_fla, "fla", args.weft, args.rounds)


if __name__ == "__main__":
    main()
