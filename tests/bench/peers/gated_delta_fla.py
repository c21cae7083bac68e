#!/usr/bin/env python3
"""The gated delta rule of flash-linear-attention beside Weft's: time, and distance from the recurrence in f64.

Time: bf16, beta in (0, 2), with decay, dense q, k and v. fla normalises q and k in passes inside (its directions are
fwd_norm and fwd_bwd_norm); Weft's rows fwd_conv_norm and fwd_bwd_conv_norm, where the convolution before normalises, are
compared with the same times. fla recomputes states in the backward; Weft saves them in the forward when a backward
follows. fla's backward is miscompiled on Hopper by Triton 3.4 to 3.7.0 and refuses to run; the refusal is removed here, so
its gradients may be wrong and only its time counts.

Accuracy: gated_delta_accuracy_test, run with WEFT_ACCURACY_DIR=DIR, leaves its inputs, Weft's outputs and those of the
recurrence in DIR; here fla's forward gets the same inputs. An error is |found - expected| / |expected|.

  gated_delta_fla.py --fla CHECKOUT [--weft build/cuda/bin/gated_delta_bench] [--accuracy DIR]    prints JSON lines
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import sys

import torch
import triton
from triton.runtime.autotuner import Autotuner

import gpu

SHAPES = [(8, 8192, 30, 96, 192), (8, 8192, 16, 128, 128), (1, 65536, 16, 128, 128)]


def name_of(shape):
    return "B{}_T{}_H{}_K{}_V{}".format(*shape)


def fla_rule(checkout, B, T, H, K, V):
    """Calls of the forward and of both directions."""
    sys.path.insert(0, checkout)
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
    return torch.no_grad()(rule), lambda: torch.autograd.grad(rule(), inputs, dy)


def compile_share(checkout, task):
    """Compiles every so many of the configurations between which Triton will choose, into its cache, and runs none."""
    (B, T, H, K, V), share, shares = task
    short = 1024  # so that all processes have room

    def compile_only(tuner, *args, **kwargs):
        tuner.nargs = dict(zip(tuner.arg_names, args))
        kwargs.pop("warmup", None)
        if "NB" in kwargs:  # blocks of so many rows, which fla's L2 norm is compiled for
            kwargs["NB"] = -(-B * T * H // 65536)
        for configuration in tuner.prune_configs(kwargs)[share::shares]:
            try:
                tuner.fn.warmup(*args, **kwargs, **configuration.all_kwargs())
            except Exception as error:  # Triton will not choose this one
                print(f"{tuner.base_fn.__name__} {configuration}: {error}", file=sys.stderr)

    Autotuner.run = compile_only
    _, both = fla_rule(checkout, B, short, H, K, V)
    both()


def time_fla(checkout, *shape):
    rule, both = fla_rule(checkout, *shape)
    forward, both = gpu.milliseconds(rule), gpu.milliseconds(both)
    for norm in "norm", "conv_norm":
        yield f"fwd_{norm}", forward
        yield f"fwd_bwd_{norm}", both


def accuracy(checkout, case):
    """The JSON line of one case, `case` its path without an ending. The first configuration will do."""
    sys.path.insert(0, checkout)
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    prune = Autotuner.prune_configs
    Autotuner.prune_configs = lambda tuner, arguments: prune(tuner, arguments)[:1]
    sizes = json.loads(pathlib.Path(f"{case}.json").read_text())
    B, T, H, K, V = (sizes[letter] for letter in "BTHKV")

    def tensor(name, dtype, *shape):
        data = bytearray(pathlib.Path(f"{case}.{name}").read_bytes())
        return torch.frombuffer(data, dtype=dtype).reshape(shape).cuda()

    activation = lambda name, width: tensor(name, torch.bfloat16, B, T, H, width)
    gate = lambda name: tensor(name, torch.float32, B, T, H)
    state = lambda name, dtype=torch.float32: tensor(name, dtype, B, H, K, V)
    with torch.no_grad():
        y, final = chunk_gated_delta_rule(
            activation("q", K), activation("k", K), activation("v", V), gate("log_a"), gate("beta"),
            initial_state=state("initial"), output_final_state=True)
    row = {"case": case.name, **sizes}
    for side, found, found_final in (
            ("fla", y, final), ("weft", activation("y", V), state("final_state"))):
        for name, x, expected in (
                ("y", found, tensor("expected", torch.float64, B, T, H, V)),
                ("final", found_final, state("expected_final", torch.float64))):
            row[f"{side}_{name}"] = float(f"{((x.double() - expected).norm() / expected.norm()).item():.2e}")
    row["worse than fla"] = row["weft_y"] > row["fla_y"] or row["weft_final"] > row["fla_final"]
    return json.dumps(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fla", required=True, metavar="DIR", help="a checkout of flash-linear-attention")
    parser.add_argument("--weft", metavar="PROGRAM", help="gated_delta_bench of a build with WEFT_BENCH")
    parser.add_argument("--accuracy", metavar="DIR", help="what gated_delta_accuracy_test left")
    parser.add_argument("--only", metavar="TEXT", default="", help="shapes with TEXT in their names")
    parser.add_argument("--rounds", type=int, default=3, help="0 to compile fla's kernels alone")
    parser.add_argument("--compiled", action="store_true", help="Triton's cache has fla's kernels")
    args = parser.parse_args()
    # Triton compiles in one thread, which takes minutes for these kernels: processes share the work.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=spawn, max_tasks_per_child=1) as pool:
        if args.accuracy:
            cases = sorted(path.with_suffix("") for path in pathlib.Path(args.accuracy).glob("*.json"))
            for row in pool.map(functools.partial(accuracy, args.fla), cases):
                print(row, flush=True)
            return
        shapes = [shape for shape in SHAPES if args.only in name_of(shape)]
        if not args.compiled:
            tasks = [(shape, share, 8) for share in range(8) for shape in shapes]
            list(pool.map(functools.partial(compile_share, args.fla), tasks))
    Autotuner.do_bench = functools.partial(triton.testing.do_bench, warmup=5, rep=25)
    gpu.compare({name_of(shape): shape for shape in shapes}, functools.partial(time_fla, args.fla), "fla", args.weft,
                args.rounds)


if __name__ == "__main__":
    main()
