"""What runs and sweeps have measured, as rows, from run.h5 and sweep.h5 alone."""

import argparse
import math
import os
import signal
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

EXIT_DATA, EXIT_INTERRUPTED = 3, 130


class StudyError(Exception):
    """One line for the user: the file, what was found and what to do."""

    def __init__(self, line, code=EXIT_DATA):
        super().__init__(line)
        self.code = code


def write_file(path, data):
    """Written beside and renamed, so that a reader sees a whole file. An error names the file."""
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


class Results:
    """Evaluations and losses of several runs, as rows."""

    def __init__(self, path, bar=0.99, best_over=(), metric="accuracy"):
        self.path = path
        self.name = (path if path.is_dir() else path.parent).resolve().name
        self.metric = metric        # what the evaluations' "accuracy" is, one of METRICS
        self.question = ""
        self.bar = bar              # accuracy from which a run passes
        self.best_over = best_over  # axes of which each seed keeps its best run
        self.sweep_toml = self.base_toml = ""
        self.axes = []
        self.cells = []             # dicts: the columns of /cells; of a run without a sweep variant case state
        self.not_done = []          # dicts: cell series case seed state, and name and {difficulty: chance} of what was asked
        self.series = {}     # name -> (variant, setting): variants in the order of the sweep file, settings in theirs
        self.settings = [""]  # of the axes that split a variant, numbers rising
        self.evals = []   # dicts: cell series case seed step tokens name difficulty accuracy nll labels chance
        self.losses = []  # dicts: cell series case seed tokens (array) loss (array) kind ("text" or the task)


def text(value):
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def open_h5(path):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{path}: cannot be read as HDF5: {reason}") from None


def table(file, path, name, columns):
    """The table as a dict of arrays; every one of `columns` must be there."""
    if name not in file:
        raise StudyError(f"{path}: has no table {name}, expected a file that weft wrote")
    data = file[name]
    names = data.dtype.names
    if names is None:
        raise StudyError(f"{path}: {name} is not a table, expected rows of a compound type")
    missing = [c for c in columns if c not in names]
    if missing:
        raise StudyError(f"{path}: table {name} has no column {missing[0]}, it has {', '.join(names)}")
    try:
        rows = data[...]
    except OSError as error:
        raise StudyError(f"{path}: table {name} is broken: {str(error).splitlines()[0]}") from None
    return {c: rows[c] for c in names}


EVAL_COLUMNS = ["step", "tokens", "difficulty", "accuracy", "nll", "labels", "chance"]
METRICS = {"accuracy": "share of right answers", "exact_match": "share of samples whose answers are all right",
           "scaled": "accuracy from chance = 0 to 1"}


def eval_row(columns, r, metric):
    """Row r of a table of evaluations, graded by the metric."""
    row = {c: columns[c][r].item() for c in [*EVAL_COLUMNS, "exact_match"] if c in columns}
    if metric == "exact_match":  # chance is that of one answer
        row |= {"accuracy": row.get("exact_match", math.nan), "chance": math.nan}
    elif metric == "scaled" and row["chance"] < 1:
        row |= {"accuracy": (row["accuracy"] - row["chance"]) / (1 - row["chance"]), "chance": 0.0}
    return row


def short(value):
    """A setting as a name shows it: different values never read the same."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return ",".join(short(v) for v in value)
    if isinstance(value, np.number) and float(f"{value:g}") == value:
        return f"{value:g}"
    return text(value)


def in_order(values):
    """Distinct values of an axis: numbers rise, others stay as they come."""
    distinct = list(dict.fromkeys(values.tolist()))
    return sorted(distinct) if values.dtype.kind in "iuf" else distinct


def read_sweep(path, results):
    import numpy as np

    with open_h5(path) as file:
        results.name = text(file.attrs.get("study", results.name))
        results.question = text(file.attrs.get("question", ""))
        results.sweep_toml = text(file.attrs.get("sweep_toml", ""))
        results.base_toml = text(file.attrs.get("base_toml", ""))
        results.axes = axes = [text(a) for a in np.atleast_1d(file.attrs.get("axes", []))]
        cells = table(file, path, "/cells", ["cell", "variant", "case", *axes])
        evals = table(file, path, "/eval", ["cell", "name", *EVAL_COLUMNS])
        train = table(file, path, "/train", ["cell", "tokens", "loss"])

    for axis in results.best_over:
        if axis not in axes or axis == "seed":
            raise StudyError(f"{path}: has no axis {axis} to choose the best over, it has "
                            f"{', '.join(a for a in axes if a != 'seed') or 'none'}")
    # A line is one variant; axes other than the seed split it where several of their values were tried in some case.
    values = defaultdict(set)
    for i in range(len(cells["cell"])):
        if "state" not in cells or text(cells["state"][i]) != "queued":
            for axis in axes:
                values[axis, cells["variant"][i], cells["case"][i]].add(cells[axis][i])
    several = [a for a in axes if a != "seed" and any(len(v) > 1 for (axis, _, _), v in values.items() if axis == a)]
    split = [a for a in several if a not in results.best_over]
    results.best_over = [a for a in results.best_over if a in several]
    places = {axis: {v: i for i, v in enumerate(in_order(cells[axis]))} for axis in split}
    variants = list(dict.fromkeys(cells["variant"]))
    keys, order = [], {}
    for i in range(len(cells["cell"])):
        variant = text(cells["variant"][i])
        setting = " ".join(f"{axis.rsplit('.', 1)[-1]}={short(cells[axis][i])}" for axis in split)
        name = f"{variant} {setting}".strip()
        order[variants.index(cells["variant"][i]), *(places[axis][cells[axis][i]] for axis in split)] = name, (variant, setting)
        seed = int(cells["seed"][i]) if "seed" in axes else 0
        keys.append({"cell": i, "series": name, "case": text(cells["case"][i]), "seed": seed})
        results.cells.append({c: text(v[i]) if isinstance(v[i], bytes) else v[i].item() for c, v in cells.items()})
        state = results.cells[i].setdefault("state", "done")
        if state != "done":
            results.not_done.append({**keys[i], "state": state})
    results.series = dict(order[place] for place in sorted(order))
    results.settings = list(dict.fromkeys(order[place][1][1] for place in sorted(order, key=lambda place: place[1:]))) or [""]

    kind, asked = {}, defaultdict(dict)
    for r in range(len(evals["cell"])):
        cell = int(evals["cell"][r])
        if not 0 <= cell < len(keys):
            raise StudyError(f"{path}: /eval names cell {cell}, but /cells has {len(keys)} rows")
        kind[cell] = text(evals["name"][r])
        row = {**keys[cell], "name": kind[cell], **eval_row(evals, r, results.metric)}
        asked[cell][row["difficulty"]] = row["chance"]
        if results.cells[cell]["state"] != "diverged":  # what it was measured at before is no result
            results.evals.append(row)
    for cell in results.not_done:
        cell |= {"name": kind.get(cell["cell"], ""), "asked": asked[cell["cell"]]}
    for cell in np.unique(train["cell"]):
        if not 0 <= cell < len(keys):
            raise StudyError(f"{path}: /train names cell {cell}, but /cells has {len(keys)} rows")
        rows = train["cell"] == cell
        results.losses.append({**keys[cell], "kind": kind.get(int(cell), ""), "tokens": train["tokens"][rows],
                               "loss": train["loss"][rows]})
    if results.best_over:
        keep_best(results)


def last_evals(results):
    """Of each run and difficulty, the evaluation at the greatest step."""
    last = {}
    for e in results.evals:
        key = (e["cell"], e["name"], e["difficulty"])
        if key not in last or e["step"] >= last[key]["step"]:
            last[key] = e
    return list(last.values())


def best_run(runs):
    """Of lists of last evaluations the most accurate at the greatest difficulty, ties going to the next, as Olmo Hybrid's
    tables choose. Text counts after the tasks, by its loss."""
    def score(e):
        value = -e["nll"] if e["name"] == "text" else e["accuracy"]
        return value if math.isfinite(value) else -math.inf

    scores = [{(e["name"] == "text", -e["difficulty"], e["name"]): score(e) for e in run} for run in runs]
    order = sorted({key for s in scores for key in s})
    return runs[max(range(len(runs)), key=lambda r: [scores[r].get(key, -math.inf) for key in order])]


def keep_best(results):
    """Of the runs that differ in the axes of best_over alone, the best; its evaluations stay and its losses."""
    seeds = defaultdict(lambda: defaultdict(list))
    for e in last_evals(results):
        seeds[e["series"], e["case"], e["seed"]][e["cell"]].append(e)
    kept = {best_run(list(runs.values()))[0]["cell"] for runs in seeds.values()}
    results.evals = [e for e in results.evals if e["cell"] in kept]
    results.losses = [run for run in results.losses if run["cell"] in kept]


def name_runs(paths):
    """{path: (name, seed)}: a run is called by its pattern and by what sets it apart, other than the seed, from runs of the
    same pattern on the same tasks. Of copies of a run the last counts."""
    alike = defaultdict(list)
    for path in paths:
        with open_h5(path) as file:
            settings = dict(file["/settings"].attrs) if "/settings" in file else {}
            name = pattern_name([text(p) for p in settings.get("model.pattern", [])]) or Path(path).parent.name
            alike[name, tuple(file.get("eval", {}))].append((path, settings))
    named = {}
    for (name, tasks), runs in alike.items():
        keys = dict.fromkeys(key for _, settings in runs for key in settings if key != "seed")
        values = {key: [short(settings.get(key, "none")) for _, settings in runs] for key in keys}
        split = [key for key in keys if len(set(values[key])) > 1]
        for i, (path, settings) in enumerate(runs):
            own = " ".join([name, *(f"{key.rsplit('.', 1)[-1]}={values[key][i]}" for key in split)])
            named[own, int(settings.get("seed", 0)), tasks] = path
    found = {path: (own, seed) for (own, seed, _), path in named.items()}
    return {path: found[path] for path in paths if path in found}


def read_run(path, name, seed, results):
    with open_h5(path) as file:
        evals = {name: table(file, path, f"/eval/{name}", EVAL_COLUMNS) for name in file.get("eval", {})}
        train = table(file, path, "/train", ["tokens", "loss"]) if "train" in file else None
    if train is None and not evals:
        raise StudyError(f"{path}: has neither /train nor /eval yet; wait for the run's first snapshot")
    results.series[name] = (name, "")
    key = {"cell": len(results.cells), "series": name, "case": "", "seed": seed}
    results.cells.append({"variant": name, "case": "", "state": "done"})
    for task, rows in evals.items():
        for r in range(len(rows["step"])):
            results.evals.append({**key, "name": task, **eval_row(rows, r, results.metric)})
    if train is not None:
        results.losses.append({**key, "kind": next(iter(evals), ""), "tokens": train["tokens"], "loss": train["loss"]})


def pattern_name(pattern):
    """["gated_delta", "gated_delta", "attention"] as "2 gated_delta + attention"."""
    parts = []
    for mixer in pattern:
        if parts and parts[-1][0] == mixer:
            parts[-1][1] += 1
        else:
            parts.append([mixer, 1])
    return " + ".join(mixer if n == 1 else f"{n} {mixer}" for mixer, n in parts)


def read(path, bar=0.99, best_over=(), metric="accuracy"):
    """Results of a sweep.h5, a run.h5, a run directory or a study directory, and the directory that they are in."""
    with one_line(path):
        return read_whole(path, bar, best_over, metric)


@contextmanager
def one_line(path):
    """What h5py throws at broken files, for the user."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{path}: is broken: {str(error).splitlines()[0] if str(error) else error!r}") from None


def read_whole(path, bar, best_over, metric):
    if not path.exists():
        raise StudyError(f"{path}: there is no such file or directory")
    directory = path if path.is_dir() else path.parent
    results = Results(path, bar, best_over, metric)
    if path.is_file():
        with open_h5(path) as file:
            is_sweep = text(file.attrs.get("format", "")) == "weft-sweep"
        sweep, runs = (path, []) if is_sweep else (None, [path])
    elif (path / "sweep.h5").exists():
        sweep, runs = path / "sweep.h5", []
    else:
        sweep, runs = None, sorted(path.rglob("run.h5"))
        if not runs:
            raise StudyError(f"{path}: has neither sweep.h5 nor a run.h5 below it; run or collect the sweep first")
    if sweep:
        read_sweep(sweep, results)
    elif best_over:
        raise StudyError(f"{path}: is no sweep and has no axis {best_over[0]} to choose the best over")
    for run, (name, seed) in name_runs(runs).items():
        read_run(run, name, seed, results)
    return results, directory


def merge(paths, out):
    """One file of several sweeps with the same axes, such as more seeds of some sizes. A run that is in two counts once, as
    it is where it is done; runs that differ in nothing that the tables show, and yet in their settings, are refused."""
    import h5py
    import numpy as np

    files, best = [], {}  # run -> (whether it is not done, file, row)
    for path in paths:
        with one_line(path), open_h5(path) as file:
            attributes = dict(file.attrs)
            axes = [text(a) for a in np.atleast_1d(file.attrs.get("axes", []))]
            if path == paths[0]:
                first = attributes | {"axes": axes}
            if axes != first["axes"]:
                raise StudyError(f"{path}: has the axes {', '.join(axes)}, {paths[0]} has {', '.join(first['axes'])}; one "
                                 "study needs the same")
            parts = {"cells": table(file, path, "/cells", ["cell", "variant", "case", "run_id", "state", *axes]),
                     "eval": table(file, path, "/eval", ["cell", "name"]), "train": table(file, path, "/train", ["cell"])}
        count = len(parts["cells"]["cell"])
        for name, part in parts.items():
            if len(part["cell"]) and not 0 <= part["cell"].min() <= part["cell"].max() < count:
                raise StudyError(f"{path}: /{name} names a cell that /cells, with {count} rows, does not have")
        for i, run in enumerate(parts["cells"]["run_id"]):
            here = parts["cells"]["state"][i] != b"done", len(files), i
            if run not in best or here[0] < best[run][0]:
                best[run] = here
        files.append(parts)

    tables, rows, shown = defaultdict(list), 0, {}
    for f, parts in enumerate(files):
        cells = parts["cells"]
        new = [i for i, run in enumerate(cells["run_id"]) if best[run][1] == f]
        for i in new:
            names = frozenset(parts["eval"]["name"][parts["eval"]["cell"] == i])
            cell = [cells[c][i] for c in ["variant", "case", *first["axes"]]]
            other = shown.setdefault((*cell, names), f)
            if names and other != f:
                raise StudyError(f"{paths[f]}: its run of {' '.join(filter(None, map(short, cell)))} has other settings than that "
                                 f"of {paths[other]}; collect both from one sweep file, or call the case of one otherwise")
        place = np.full(len(cells["cell"]), -1)
        place[new] = rows + np.arange(len(new))
        rows += len(new)
        for name, part in parts.items():
            cell = place[part["cell"]]
            tables[name].append({c: v[cell >= 0] for c, v in part.items()} | {"cell": cell[cell >= 0]})
    with h5py.File(out, "w") as file:
        file.attrs.update({k: v for k, v in first.items()})
        for name, parts in tables.items():
            columns = list(dict.fromkeys(c for part in parts for c in part))

            def column(c):
                kind = next(part[c].dtype for part in parts if c in part)
                blank = np.nan if kind.kind == "f" else np.zeros((), kind)
                return np.concatenate([part[c] if c in part else np.full(len(part["cell"]), blank, kind) for part in parts])

            data = {c: column(c) for c in columns}
            kinds = [(c, h5py.string_dtype("utf-8", v.dtype.itemsize) if v.dtype.kind == "S" else v.dtype) for c, v in data.items()]
            whole = np.empty(len(data["cell"]), kinds)
            for c, v in data.items():
                whole[c] = v
            file[name] = whole
    return out


def bar_of(value):
    try:
        bar = float(value)
    except ValueError:
        bar = math.nan
    if not 0 < bar <= 1:
        raise argparse.ArgumentTypeError(f"is {value}, expected an accuracy in (0, 1]")
    return bar


def add_options(parser):
    parser.add_argument("--pass", dest="bar", metavar="ACCURACY", type=bar_of, default=0.99,
                        help="a seed passes from this accuracy on; default: 0.99")
    parser.add_argument("--metric", choices=METRICS, default="accuracy",
                        help="what is graded: " + "; ".join(f"{name}, the {what}" for name, what in METRICS.items()))
    parser.add_argument("--best-over", metavar="AXIS,...", type=lambda names: names.split(","), default=[],
                        help="keep of each seed the run whose value of these axes, such as optim.lr, did best; default: show all")


def run_program(name, main):
    """Exits with main's code; an error is one line, Ctrl-C and a reader that has gone are none."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = main()
        print(end="", flush=True)
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        print(f"{name}: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of the output goes there
        sys.exit(1)
    except StudyError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.code)
    except ModuleNotFoundError as error:
        print(f"{name}: Python lacks {error.name}; type: apt install python3-h5py python3-matplotlib", file=sys.stderr)
        sys.exit(1)
