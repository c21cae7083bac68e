"""What the scripts share that time PyTorch on a GPU beside a benchmark of Weft."""

import json
import statistics
import subprocess

import torch

REPEATS = 30


def milliseconds(call):
    """The median of replays of a CUDA graph of call()."""
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


def weft_rows(program, shape):
    """(name after the shape, milliseconds) of every benchmark of that shape."""
    command = [program, f"--benchmark_filter=^{shape}/", "--benchmark_format=json"]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for row in out["benchmarks"]:
        yield row["name"].split("/")[1], row["real_time"]


def compare(shapes, time_peer, peer, weft_program, rounds):
    """Both sides take turns; prints one JSON line per shape and direction, with medians over the rounds.

    shapes maps a name to the arguments of time_peer, which yields (direction, milliseconds).
    """
    for shape, arguments in shapes.items():
        times = {}
        for _ in range(rounds):
            for direction, ms in time_peer(*arguments):
                times.setdefault(direction, {}).setdefault(peer, []).append(ms)
            for direction, ms in weft_rows(weft_program, shape) if weft_program else ():
                times.setdefault(direction, {}).setdefault("weft", []).append(ms)
        for direction, sides in times.items():
            if weft_program and "weft" not in sides:
                continue
            row = {"shape": shape, "direction": direction}
            row |= {f"{side}_ms": round(statistics.median(ms), 4) for side, ms in sides.items()}
            if len(sides) == 2:
                row[f"weft/{peer}"] = round(row["weft_ms"] / row[f"{peer}_ms"], 3)
            print(json.dumps(row | {"device": torch.cuda.get_device_name()}), flush=True)
