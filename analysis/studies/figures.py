"""Every figure of studies: weft plot, weft report and weft paper draw them from here."""

import io
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Callable

from studies.evidence import Cloud, accuracy_table, by_task, panels, selection
from studies.results import write_file

# Okabe and Ito's palette without yellow and black, which are hard to see as lines on white or reserved for chance.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#7F7F7F"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "*"]
GRID, INK = "#DDDDDD", "#333333"
MOST_SERIES = 12  # that a legend can hold


def style(results):
    """Colour and marker of each variant: the same in every panel and figure."""
    variants = dict.fromkeys(variant for variant, _ in results.series.values())
    return {v: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]) for i, v in enumerate(variants)}


def facets(results, grouped):
    """Title -> its rows, a title per task and setting; and how many columns suit them."""
    found = {}
    for title, rows in grouped.items():
        for setting in results.settings:
            mine = [r for r in rows if results.series[r["series"]][1] == setting]
            if mine:
                found[f"{title}, {setting}" if setting else title] = mine
    settings = len(results.settings)
    return found, settings if settings in (2, 3, 4) else columns_of(len(found))


def setup_matplotlib():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.8,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.8,
        "lines.markersize": 4.5, "svg.fonttype": "none", "svg.hashsalt": "weft", "figure.dpi": 100})


def columns_of(n):
    return 2 if n == 4 else min(n, 3)


def grid_of(n, columns=None):
    """A figure of n panels, and its axes; many rows are low."""
    import matplotlib.pyplot as plt

    columns = min(n, columns or columns_of(n))
    rows = math.ceil(n / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(0.6 + (3.0 if columns > 1 else 3.6) * columns, 0.9 + (2.4 if rows <= 4 else 1.75) * rows))
    flat = list(axes.flat)
    for unused in flat[n:]:
        unused.remove()
    return figure, flat[:n]


def legend_above(figure, axes, extra=()):
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    for label in extra:  # last
        if label in handles:
            handles[label] = handles.pop(label)
    width, height = figure.get_size_inches()
    columns = max(1, min(len(handles), int(width / (0.7 + 0.085 * max(map(len, handles))))))
    strip = 0.1 + 0.2 * math.ceil(len(handles) / columns)  # inches
    if strip > height / 3:  # many series: the panels keep their height
        height += strip
        figure.set_size_inches(width, height)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip / height))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, frameon=False, borderpad=0.2,
                  handlelength=2.2, columnspacing=1.6)


def power_of_two_axis(axis, values):
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log", base=2)
    ticks = sorted(set(values))
    while len(ticks) > 9:
        ticks = ticks[::2]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    if len(ticks) == 1:
        axis.set_xlim(ticks[0] / 2, ticks[0] * 2)


def caption_below(figure, results):
    if results.best_over:
        figure.supxlabel(selection(results), fontsize=8)


def name_panel(ax, title):
    ax.set_title(title, fontsize=10 if len(title) <= 34 else 8)


def unit_axes(ax, title):
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    name_panel(ax, title)


def outer_labels(axes, columns, x, y):
    """Labels where a row begins and a column ends."""
    for ax in axes[::columns]:
        ax.set_ylabel(y)
    for ax in axes[-columns:]:
        ax.set_xlabel(x)


def evidence_panels(results):
    """Panels of the rows of accuracy_table, as facets has them."""
    grouped = {}
    for row in accuracy_table(results):
        if row["evidence"]:
            grouped.setdefault(row["task"], []).append(row)
    return facets(results, grouped)


def accuracy_figure(results):
    """Medians over seeds, their range as a band, and dotted the best run."""
    found, columns = evidence_panels(results)
    if not found:
        return None
    setup_matplotlib()
    styles = style(results)
    figure, axes = grid_of(len(found), columns)
    for ax, (title, rows) in zip(axes, found.items()):
        several = any(r["seeds"] > 1 for r in rows)
        for i, row in enumerate(rows):
            variant, _ = results.series[row["series"]]
            colour, marker = styles[variant]
            x = list(row["evidence"])
            median, low, high, best = ([math.nan if e[c] is None else e[c] for e in row["evidence"].values()]
                                       for c in ["median", "min", "max", "best_run"])
            if len(x) == 1 and several:  # ranges beside each other
                x = [x[0] * 2 ** (min(0.15, 1.6 / len(rows)) * (i - (len(rows) - 1) / 2))]
            ax.plot(x, median, color=colour, marker=marker, markeredgecolor="white", markeredgewidth=0.6,
                    label=variant, clip_on=False, zorder=3)
            if row["seeds"] > 1:
                dots = {"linestyle": ":", "linewidth": 1.2, "zorder": 2.5}
                if len(x) == 1:  # a band and a line have no width
                    ax.vlines(x, low, high, color=colour, alpha=0.4, linewidth=4)
                else:
                    ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                    ax.plot(x, best, color=colour, **dots)
                    ax.plot([], [], color=INK, label="best run", **dots)
        levels = [{d: c for d, c in row["chance"].items() if c is not None} for row in rows]
        for i, chance in enumerate(levels):
            if not chance or chance in levels[:i]:
                continue
            x, y = list(chance), list(chance.values())
            if len(x) == 1:
                x, y = [x[0] / 2, x[0] * 2], y * 2
            ax.plot(x, y, color=INK, linestyle=(0, (4, 3)), linewidth=1, label="chance", zorder=2)
        power_of_two_axis(ax, [d for row in rows for d in row["chance"]])
        unit_axes(ax, title)
    outer_labels(axes, columns, "difficulty", "accuracy")
    caption_below(figure, results)
    legend_above(figure, axes, extra=["best run", "chance"])
    return figure


def pass_rate_figure(results):
    """The share of seeds that pass, with Wilson's intervals; variants beside each other, so that none hides another."""
    found, columns = evidence_panels(results)
    if not any(row["seeds"] > 1 for rows in found.values() for row in rows):
        return None
    setup_matplotlib()
    styles = style(results)
    figure, axes = grid_of(len(found), columns)
    for ax, (title, rows) in zip(axes, found.items()):
        for i, row in enumerate(rows):
            variant, _ = results.series[row["series"]]
            colour, marker = styles[variant]
            beside = 2 ** (min(0.13, 0.8 / len(rows)) * (i - (len(rows) - 1) / 2))
            e = list(row["evidence"].values())
            rate = [x["pass_rate"] for x in e]
            ax.errorbar([d * beside for d in row["evidence"]], rate, color=colour, marker=marker, label=variant,
                        yerr=[[x["pass_rate"] - x["pass_low"] for x in e], [x["pass_high"] - x["pass_rate"] for x in e]],
                        linewidth=0.8, elinewidth=1.2, clip_on=False, zorder=3)
        power_of_two_axis(ax, [d for row in rows for d in row["chance"]])
        unit_axes(ax, title)
    outer_labels(axes, columns, "difficulty", f"share of seeds \u2265 {results.bar:g}")
    caption_below(figure, results)
    legend_above(figure, axes)
    return figure


def state_figure(results):
    """Accuracy at the greatest difficulty against the bytes that decoding keeps: a point per run, a line through medians."""
    grouped = panels(results)
    variants = list(dict.fromkeys(c["variant"] for c in results.cells))
    bytes_of = [c.get("state_bytes", 0) for c in results.cells]
    if not grouped or len(set(bytes_of)) < 3:
        return None
    setup_matplotlib()
    styles = style(results)
    figure, axes = grid_of(len(grouped))
    for ax, (title, evals) in zip(axes, grouped.items()):
        hardest = max(e["difficulty"] for e in evals)
        evals = [e for e in evals if e["difficulty"] == hardest]
        for name in variants:
            runs = [(bytes_of[e["cell"]], e["accuracy"]) for e in evals if results.cells[e["cell"]]["variant"] == name]
            runs = [(x, y) for x, y in runs if x > 0 and math.isfinite(y)]
            if not runs:
                continue
            colour, marker = styles[name]
            ax.plot(*zip(*runs), marker, color=colour, alpha=0.4, clip_on=False)
            x = sorted({x for x, _ in runs})
            ax.plot(x, [statistics.median(y for at, y in runs if at == one) for one in x], color=colour, marker=marker, label=name,
                    clip_on=False)
        ax.set_xscale("log")
        unit_axes(ax, f"{title}, difficulty {hardest}")
    outer_labels(axes, columns_of(len(axes)), "decode state (bytes)", "accuracy")
    caption_below(figure, results)
    legend_above(figure, axes)
    return figure


def smooth(tokens, loss, bins=60):
    """Means over at most `bins` ranges of equal width in log tokens: a curve that can be read."""
    import numpy as np

    keep = np.isfinite(loss) & (tokens > 0)
    tokens, loss = tokens[keep].astype(float), loss[keep]
    if len(tokens) <= bins:
        return tokens, loss
    edges = np.geomspace(tokens[0], tokens[-1] * (1 + 1e-9), bins + 1)
    which = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, bins - 1)
    used = np.unique(which)
    return (np.array([tokens[which == b].mean() for b in used]), np.array([loss[which == b].mean() for b in used]))


def loss_of_variants(results):
    """Every run in one panel, one colour per variant."""
    variants = list(dict.fromkeys(c["variant"] for c in results.cells))
    setup_matplotlib()
    figure, (ax,) = grid_of(1)
    figure.set_size_inches(7.5, 4.5)
    for run in results.losses:
        i = variants.index(results.cells[run["cell"]]["variant"])
        ax.plot(*smooth(run["tokens"], run["loss"]), color=COLOURS[i % len(COLOURS)], linewidth=0.6, alpha=0.6, label=variants[i])
    ax.set_xscale("log")
    ax.set_xlabel("tokens")
    ax.set_ylabel("loss (nats per label)")
    legend_above(figure, [ax])
    return figure


def loss_figure(results):
    """Loss while training, with its range over seeds; sweeps of many sizes have one panel for all."""
    import numpy as np

    if len(results.series) > MOST_SERIES:
        return loss_of_variants(results)
    found, columns = facets(results, by_task([{**run, "name": run["kind"] or "training"} for run in results.losses]))
    if not found:
        return None
    setup_matplotlib()
    from matplotlib.ticker import FuncFormatter, NullFormatter

    styles = style(results)
    figure, axes = grid_of(len(found), columns)
    for ax, (title, runs) in zip(axes, found.items()):
        text = runs[0]["name"] == "text"
        unit = 1 / math.log(2) if text else 1
        for series, (variant, _) in results.series.items():
            curves = [smooth(r["tokens"], r["loss"] * unit) for r in runs if r["series"] == series]
            curves = [c for c in curves if len(c[0])]
            if not curves:
                continue
            colour, _ = styles[variant]
            low, high = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
            x = np.geomspace(low, high, 200) if len(curves) > 1 and high > low else curves[0][0]
            y = np.array([np.interp(np.log(x), np.log(c[0]), c[1]) for c in curves])
            ax.plot(x, y.mean(axis=0), color=colour, label=variant, linewidth=1.4, marker="o" if len(x) == 1 else None)
            if len(curves) > 1:
                ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            if text:
                held = Cloud((e["tokens"], e["nll"] * unit) for e in results.evals
                             if e["name"] == "text" and e["series"] == series and e["case"] == runs[0]["case"])
                ring = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "markeredgewidth": 1.2, "zorder": 4}
                ax.plot(held.x, held.mean, color=colour, **ring)
                ax.plot([], [], color=INK, label="held out", **ring)
        ax.set_xscale("log")
        shown = [v for line in ax.get_lines() for v in line.get_ydata() if v > 0]
        if shown and max(shown) > 10 * min(shown):
            ax.set_yscale("log")
        elif shown:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        name_panel(ax, title)
        ax.set_ylabel("bits per byte" if text else "loss (nats per label)")
    for ax in axes[-columns:]:
        ax.set_xlabel("tokens")
    caption_below(figure, results)
    legend_above(figure, axes, extra=["held out"])
    return figure


def panels_for(names):
    setup_matplotlib()
    figure, axes = grid_of(len(names))
    return figure, dict(zip(names, axes))


def shades(count):
    import matplotlib

    return [matplotlib.colormaps["viridis"](0.85 * i / max(1, count - 1)) for i in range(count)]


def tokens_figure(laws):
    """One panel per architecture, one colour per size: the fitted law; points: what was measured."""
    import numpy as np

    figure, axes = panels_for(laws.names)
    sizes = list(dict.fromkeys(r["size"] for r in laws.rows))
    colour = dict(zip(sizes, shades(len(sizes))))
    for name, ax in axes.items():
        for size, n in sorted({(r["size"], r["n"]) for r in laws.rows if r["architecture"] == name}, key=lambda s: s[1]):
            mine = [r for r in laws.rows if (r["architecture"], r["size"], r["n"]) == (name, size, n)]
            d = np.geomspace(min(r["d"] for r in mine) / 1.5, max(r["d"] for r in mine) * 1.5, 60)
            ax.plot(d, laws.loss(name, n, d), color=colour[size], linewidth=1.1)
            ax.plot([r["d"] for r in mine], [r["loss"] for r in mine], "o", color=colour[size], label=size or f"{n:.3g}")
        ax.set_xscale("log")
        ax.set_title(name or "all")
        ax.set_xlabel("D (tokens)")
    next(iter(axes.values())).set_ylabel("held-out loss")
    legend_above(figure, list(axes.values()))
    return figure


def flops_figure(laws):
    """Loss against training FLOPs k N^g D, all architectures in one panel, with the compute-optimal frontier of each."""
    import numpy as np

    setup_matplotlib()
    figure, (ax,) = grid_of(1)
    figure.set_size_inches(5.5, 3.8)
    flops = [r["flops"] for r in laws.rows]
    c = np.geomspace(min(flops), max(flops), 80)
    for i, name in enumerate(laws.names):
        law, colour = laws.laws[name], COLOURS[i % len(COLOURS)]
        rows = [r for r in laws.rows if r["architecture"] == name]
        ax.plot([r["flops"] for r in rows], [r["loss"] for r in rows], MARKERS[i % len(MARKERS)], color=colour,
                alpha=0.5, markersize=3.5)
        if min(law["A"], law["B"]) > 0:
            alpha, beta, k, g = law["alpha"], law["beta"], law["k"], law["g"]
            n = (alpha * law["A"] / (g * beta * law["B"]) * (c / k) ** beta) ** (1 / (alpha + g * beta))
            ax.plot(c, laws.loss(name, n, c / (k * n**g)), color=colour, label=name or "all")
    ax.set_xscale("log")
    ax.set_xlabel("FLOPs in training")
    ax.set_ylabel("held-out loss")
    legend_above(figure, [ax])
    return figure


def surface_figure(laws):
    import numpy as np

    figure, axes = panels_for(laws.names)
    n = np.geomspace(min(r["n"] for r in laws.rows) / 2, max(r["n"] for r in laws.rows) * 2, 60)
    d = np.geomspace(min(r["d"] for r in laws.rows) / 2, max(r["d"] for r in laws.rows) * 2, 60)
    grid_n, grid_d = np.meshgrid(n, d)
    surfaces = {name: laws.loss(name, grid_n, grid_d) for name in laws.names}
    levels = np.linspace(min(s.min() for s in surfaces.values()), max(s.max() for s in surfaces.values()), 14)
    for name, ax in axes.items():
        drawn = ax.contour(grid_n, grid_d, surfaces[name], levels=levels, cmap="viridis", linewidths=1)
        ax.clabel(drawn, fontsize=6, fmt="%.2f")
        rows = [r for r in laws.rows if r["architecture"] == name]
        ax.plot([r["n"] for r in rows], [r["d"] for r in rows], "o", color=INK, markersize=2.5)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(name or "all")
        ax.set_xlabel("N")
    next(iter(axes.values())).set_ylabel("D (tokens)")
    return figure


def savings_figure(laws):
    rows, names, reference = laws.savings, laws.names, laws.reference
    others = [name for name in names if name != reference]
    if not others:
        return None
    setup_matplotlib()
    figure, (ax,) = grid_of(1)
    figure.set_size_inches(5.5, 3.8)
    drawn = False
    for name in others:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        mine = [r for r in rows if r["architecture"] == name and r["savings"] is not None]
        if not mine:
            continue
        drawn = True
        ax.plot([r["n"] for r in mine], [r["savings"] for r in mine], color=colour, marker="o", label=name)
        band = [r for r in mine if r.get("savings_low") is not None and r.get("savings_high") is not None]
        ax.fill_between([r["n"] for r in band], [r["savings_low"] for r in band], [r["savings_high"] for r in band],
                        color=colour, alpha=0.15, linewidth=0)
    if not drawn:
        import matplotlib.pyplot as plt

        plt.close(figure)
        return None
    ax.axhline(1, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    ax.set_xscale("log")
    ax.set_ylim(0, min(max(2, ax.get_ylim()[1]), 6))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}x")
    ax.set_xlabel("N")
    ax.set_ylabel(f"tokens of {reference} / own tokens")
    legend_above(figure, [ax])
    return figure


def isoflop_figure(laws):
    import numpy as np

    if laws.isoflop is None:
        return None
    figure, axes = panels_for(laws.names)
    for name, ax in axes.items():
        mine = [b for b in laws.isoflop["budgets"] if b["architecture"] == (name or "all")]
        for colour, budget in zip(shades(len(mine)), mine):
            points = [r for r in laws.rows if r["architecture"] == name and abs(math.log(r["flops"] / budget["flops"])) < math.log(1.1)]
            n, loss = np.array([r["n"] for r in points]), np.array([r["loss"] for r in points])
            ax.plot(n, loss, "o", color=colour, label=f"{budget['flops']:.2g}")
            if not budget["excluded"]:
                x = np.log(n)
                fit = np.polyfit(x - x.mean(), loss, 2)
                fine = np.linspace(x.min(), x.max(), 50)
                ax.plot(np.exp(fine), np.polyval(fit, fine - x.mean()), color=colour, linewidth=1)
                ax.plot(budget["n"], budget["loss"], "*", color=INK, markersize=8)
        ax.set_xscale("log")
        ax.set_title(name or "all")
        ax.set_xlabel("N")
    next(iter(axes.values())).set_ylabel("held-out loss")
    legend_above(figure, list(axes.values()))
    return figure


def cost_figure(results):
    """Tokens per second of whole runs, and planned memory, against parameters."""
    cells = [{**c, "tokens_per_second": c["tokens"] / c["seconds"] if c.get("seconds") and c["state"] == "done" else None}
             for c in results.cells if c.get("parameters")]
    series = list(dict.fromkeys(c["variant"] for c in cells))
    panels = [(key, label) for key, label in [("tokens_per_second", "tokens / s"), ("memory_bytes", "memory (bytes)"),
                                              ("state_bytes", "decode state (bytes)")] if any(c.get(key) for c in cells)]
    if not panels:
        return None
    setup_matplotlib()
    figure, axes = grid_of(len(panels))
    for ax, (key, label) in zip(axes, panels):
        for i, name in enumerate(series):
            cloud = Cloud((c["parameters"], c[key]) for c in cells if c["variant"] == name and c.get(key))
            if not cloud.x:
                continue
            colour = COLOURS[i % len(COLOURS)]
            ax.plot(cloud.x, cloud.mean, color=colour, marker=MARKERS[i % len(MARKERS)], label=name)
            if cloud.several:
                ax.fill_between(cloud.x, cloud.low, cloud.high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("parameters")
        ax.set_ylabel(label)
    legend_above(figure, axes)
    return figure


@dataclass(frozen=True)
class Kind:
    """A figure of results or, with `of_laws`, of their laws; None where there is nothing to draw."""

    draw: Callable
    caption: str
    of_laws: bool = False


FIGURES = {
    "accuracy": Kind(accuracy_figure, "Accuracy against difficulty: median and range over seeds, dotted the best run."),
    "pass-rate": Kind(pass_rate_figure, "The share of seeds that pass, with Wilson's intervals of 95 %."),
    "state": Kind(state_figure, "Accuracy at the greatest difficulty against the bytes that decoding keeps; lines join medians."),
    "loss": Kind(loss_figure, "Loss while training, with its range over seeds."),
    "cost": Kind(cost_figure, "Tokens per second of whole runs with their evaluations; memory and decode state as planned."),
    "loss-tokens": Kind(tokens_figure, "Held-out loss against tokens. Points are measured, lines are the law; one colour per size.",
                        True),
    "loss-flops": Kind(flops_figure, "Held-out loss against compute. Lines: the compute-optimal loss of each law.", True),
    "surface": Kind(surface_figure, "The fitted loss over size and tokens, and where it was measured.", True),
    "savings": Kind(savings_figure, "Token savings at equal N: the most tokens that a size was trained with, over those with which "
                    "the architecture reaches the loss that {reference} then has. Above 1 favours the architecture. Bands are "
                    "bootstrap intervals; the two largest sizes are extrapolated.", True),
    "isoflop": Kind(isoflop_figure, "Parabolas through the losses of each budget; stars are their minima.", True),
}


def draw(name, results, laws=None):
    """The figure, or None where the study has nothing for it."""
    kind = FIGURES[name]
    if kind.of_laws:
        return kind.draw(laws) if laws else None
    return kind.draw(results)


def caption(name, results, laws=None):
    said = FIGURES[name].caption
    if FIGURES[name].of_laws:
        return said.format(reference=laws.reference)
    return f"{said} Shown is {selection(results)}." if results.best_over and name != "cost" else said


def save(figure, *paths):
    """In the formats of the paths' endings."""
    import matplotlib.pyplot as plt

    for path in paths:
        kind = path.suffix[1:]
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        image = io.BytesIO()
        figure.savefig(image, format=kind, dpi=200, metadata=metadata)
        write_file(path, image.getvalue())
    plt.close(figure)
    return [str(path) for path in paths]
