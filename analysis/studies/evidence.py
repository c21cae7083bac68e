"""Tables of results with what the seeds say: pass rates with intervals, medians, ranges, the best run."""

import math
import statistics
from collections import Counter, defaultdict

from studies.results import METRICS, best_run, last_evals

LEVEL = 0.95  # of Wilson's intervals
Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


class Cloud:
    """Mean and range over seeds at each x."""

    def __init__(self, points):
        values = defaultdict(list)
        for x, y in points:
            if math.isfinite(y):
                values[x].append(y)
        self.x = sorted(values)
        self.mean = [sum(values[x]) / len(values[x]) for x in self.x]
        self.low = [min(values[x]) for x in self.x]
        self.high = [max(values[x]) for x in self.x]
        self.several = any(len(v) > 1 for v in values.values())


def by_task(rows):
    """Title -> its rows; a task in several cases has a title per case."""
    cases = defaultdict(set)
    for r in rows:
        cases[r["name"]].add(r["case"])
    grouped = {}
    for r in rows:
        title = r["name"] if len(cases[r["name"]]) == 1 else r["case"] if r["name"] in r["case"] else f"{r['name']}, {r['case']}"
        grouped.setdefault(title.replace("_", " "), []).append(r)
    return grouped


def panels(results):
    """Title -> its evaluations, for the tasks."""
    grouped = {title: [e for e in rows if "accuracy" in e] for title, rows in with_lost(results).items()}
    return {title: evals for title, evals in grouped.items() if evals}


def with_lost(results):
    """Title -> its evaluations, and a row without accuracy for each diverged cell of a case that has none."""
    evals = [e for e in last_evals(results) if e["name"] != "text"]
    cases = {e["case"] for e in evals}
    lost = [c for c in results.not_done if c["state"] == "diverged" and c["case"] not in cases and c["name"] != "text"]
    names = {r["name"] for r in evals + lost if r["name"]}
    only = names.pop() if len(names) == 1 else "task"
    return by_task(evals + [c | {"name": c["name"] or only} for c in lost])


def wilson(passed, n):
    """Interval at LEVEL for the rate of `passed` out of n > 0, in [0, 1].

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = passed/n; Wilson 1927, and Brown, Cai and DasGupta
    2001, who recommend it for small n.
    """
    p, z2 = passed / n, Z * Z
    centre, half = p + z2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    return (0.0 if passed == 0 else (centre - half) / scale), (1.0 if passed == n else (centre + half) / scale)


def evidence(runs, diverged, difficulties, bar):
    """{difficulty: what the runs show, one per seed}. A diverged run did not pass and has no accuracy."""
    best = {e["difficulty"]: e["accuracy"] for e in best_run(runs) if math.isfinite(e["accuracy"])} if runs else {}
    rows = {}
    for difficulty in difficulties:
        values = [e["accuracy"] for run in runs for e in run if e["difficulty"] == difficulty and math.isfinite(e["accuracy"])]
        if not values and runs:
            continue
        n, passed = len(values) + diverged, sum(v >= bar for v in values)
        low, high = wilson(passed, n)
        exact = [e["exact_match"] for run in runs for e in run if e["difficulty"] == difficulty and "exact_match" in e]
        rows[difficulty] = {"seeds": n, "passed": passed, "pass_rate": passed / n, "pass_low": low, "pass_high": high,
                            "median": statistics.median(values) if values else None, "min": min(values, default=None),
                            "max": max(values, default=None), "best_run": best.get(difficulty),
                            "exact_match": statistics.median(exact) if exact else None}
    return rows


def agreed(pairs):
    """{difficulty: chance}, nan where the pairs differ."""
    chance = {}
    for difficulty, level in pairs:
        chance[difficulty] = level if chance.get(difficulty, level) == level else math.nan
    return chance


def accuracy_table(results):
    """Rows of {task, series, seeds, accuracy: {difficulty: median}, chance: {difficulty: level}, evidence}."""
    rows = []
    everywhere = {e["difficulty"]: math.nan for e in last_evals(results) if e["name"] != "text"}
    for title, found in with_lost(results).items():
        evals = [e for e in found if "accuracy" in e]
        cases = {e["case"] for e in found}
        for series in results.series:
            runs = defaultdict(list)
            for e in evals:
                if e["series"] == series:
                    runs[e["cell"]].append(e)
            seeds = {e["seed"] for run in runs.values() for e in run}
            lost = [c for c in results.not_done if c["state"] == "diverged" and c["series"] == series and c["case"] in cases]
            diverged = {c["seed"] for c in lost} - seeds
            if not seeds and not diverged:
                continue
            # Series may have tasks of different settings: chance is that of the series' own.
            chance = (agreed((e["difficulty"], e["chance"]) for run in runs.values() for e in run)
                      or agreed(pair for c in lost for pair in c["asked"].items())
                      or agreed((e["difficulty"], e["chance"]) for e in evals) or everywhere)
            shown = evidence(list(runs.values()), len(diverged), sorted(chance), results.bar)
            rows.append({"task": title, "series": series, "seeds": len(seeds) + len(diverged),
                         "accuracy": {d: e["median"] for d, e in shown.items() if e["median"] is not None},
                         "chance": {x: chance[x] if math.isfinite(chance[x]) else None for x in sorted(chance)},
                         "evidence": shown})
    return rows


def evidence_rows(rows):
    """Rows of accuracy_table, one per difficulty."""
    return [{"task": r["task"], "series": r["series"], "difficulty": d, **e, "chance": r["chance"][d]}
            for r in rows for d, e in r["evidence"].items()]


def selection(results):
    """What must stand beside every number of --best-over, or nothing."""
    return f"each seed with its best {' and '.join(results.best_over)}, chosen on this evaluation" if results.best_over else ""


def notes(results):
    """How to read the tables, as sentences."""
    said = []
    if results.metric != "accuracy":
        said.append(f"Accuracy is here the {METRICS[results.metric]}.")
    if any(r["seeds"] > 1 for r in accuracy_table(results)):
        said.append(f"A seed passes with an accuracy of at least {results.bar:g}, a diverged one does not; intervals are "
                    "Wilson's; the best run is the most accurate at the greatest difficulty.")
    if results.best_over:
        said.append(f"Shown is {selection(results)}: rates and medians are optimistic.")
    return said + uneven_search(results)


def uneven_search(results):
    """A sentence per case in which some variants were given other settings, or more of them, to choose from."""
    tried = defaultdict(dict)  # case -> variant -> settings of its runs
    for cell in results.cells if results.best_over else []:
        runs = tried[cell["case"]].setdefault(cell["variant"], set())
        if cell["state"] in ("done", "diverged"):
            runs.add(tuple(cell[axis] for axis in results.axes))
    return [f"Not every variant was searched alike{case and f' in {case}'}: runs are "
            f"{', '.join(f'{len(runs)} of {variant}' for variant, runs in variants.items() if runs)}."
            for case, variants in tried.items() if len({frozenset(runs) for runs in variants.values() if runs}) > 1]


def unfinished(results):
    """The cells that are not done, as at most one sentence."""
    states = Counter(c["state"] for c in results.not_done)
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    counted = len({c["cell"] for c in results.not_done} & {e["cell"] for e in results.evals})
    early = f"; of {counted} the last evaluation so far counts" if counted else ""
    return [f"{len(results.not_done)} of {len(results.cells)} cells are not done: {counts}{early}."] if states else []


def text_table(results):
    rows = []
    evals = [e for e in last_evals(results) if e["name"] == "text"]
    for series in results.series:
        mine = [e["nll"] / math.log(2) for e in evals if e["series"] == series]
        if mine:
            rows.append({"series": series, "seeds": len(mine), "bits_per_byte": sum(mine) / len(mine)})
    return rows


def number(value):
    """A setting of an axis, as a size is called by it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def match_rows(results):
    """Counts of each variant beside those of the first, at each size: case and axes, as weft fit names it."""
    rows, first, seen = [], {}, set()
    sized = [a for a in results.axes if a != "seed" and not a.startswith("optim.") and len({c[a] for c in results.cells}) > 1]
    for cell in results.cells:
        size = " ".join([cell["case"], *(f"{a}={number(cell[a])}" for a in sized)]).strip()
        if (size, cell["variant"]) in seen:
            continue
        seen.add((size, cell["variant"]))
        row = {"variant": cell["variant"], "size": size}
        reference = first.setdefault(size, cell)
        for key in ["parameters", "embedding_parameters", "head_parameters", "body_parameters", "flops_per_token"]:
            if cell.get(key) is None:
                continue
            row[key] = cell[key]
            if key in ("parameters", "body_parameters", "flops_per_token") and reference.get(key):
                row[f"{key}, % of {reference['variant']}"] = 100 * cell[key] / reference[key]
        if math.isfinite(cell.get("residual_percent", math.nan)):
            row |= {"matched_value": cell["matched_value"], "residual, %": cell["residual_percent"]}
        rows.append(row)
    return rows
