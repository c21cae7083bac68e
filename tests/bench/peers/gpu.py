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
    """Both sides take turns, also in being first: a GPU that was busy has a lower clock. Prints one JSON line per shape
    and direction, with medians over the rounds.

    shapes maps a name to the arguments of time_peer, which yields (direction, milliseconds).
    """
    for shape, arguments in shapes.items():
        sides = [(peer, lambda: time_peer(*arguments))]
        if weft_program:
            sides.append(("weft", lambda: weft_rows(weft_program, shape)))
        times = {}
        for _ in range(rounds):
            for side, measure in sides:
                for direction, ms in measure():
                    times.setdefault(direction, {}).setdefault(side, []).append(ms)
            sides.reverse()
        for direction, measured in times.items():
            if weft_program and "weft" not in measured:
                continue
            row = {"shape": shape, "direction": direction}
            row |= {f"{side}_ms": round(statistics.median(ms), 4) for side, ms in measured.items()}
            if len(measured) == 2:
                row[f"weft/{peer}"] = round(row["weft_ms"] / row[f"{peer}_ms"], 3)
            print(json.dumps(row | {"device": torch.cuda.get_device_name()}), flush=True)
