"""``plot``: the pictures of a file of results, for pages that are light or dark.

The background is transparent, and lines and text have a tone in the middle, so that one file serves both.
Providers differ in colour (of a set made for the colour-blind), in marker and in dash.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.case import COMPILE, LIMIT, NUMEXPR, NUMPY, OURS, TORCH, format_size
from benchmarks.results import Row, by_subject, speedup
from inplace_ext._table import OPS

#: Contrast of 4 to 1 and more, on white and on the dark grey that pages use.
INK = "#7b7f86"
FAINT = "#7b7f8650"

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, and the page's own font
    "svg.hashsalt": "inplace_ext",  # the same file from the same results
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Look:
    label: str
    colour: str
    marker: str
    dash: str = "-"


LOOKS = {
    OURS: Look("inplace_ext", "#0b84d8", "o"),
    TORCH: Look("torch", "#d55e00", "s"),
    COMPILE: Look("torch.compile", "#009e73", "^"),
    NUMPY: Look("NumPy", "#c266a1", "D"),
    NUMEXPR: Look("numexpr", "#a38a00", "v"),
    LIMIT: Look("memory (a scaling loop)", INK, "", "--"),
}
Draw = Callable[[Sequence[Row]], Figure | None]


def _label(size: int) -> str:
    return format_size(size).replace(" ", "\u202f")


def _sizes(axis: Any, sizes: Iterable[int]) -> None:
    axis.set_major_formatter(FuncFormatter(lambda v, _: _label(int(v))))
    axis.set_ticks(sorted(set(sizes)))
    axis.set_minor_locator(NullLocator())


def _times(axis: Any) -> None:
    """Ticks of an axis of ratios: 1x, 2x, 5x."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def _line(axes: Axes, provider: str, points: Sequence[tuple[float, float]], label: bool = True) -> None:
    look = LOOKS[provider]
    xs, ys = zip(*sorted(points), strict=True)
    axes.plot(xs, ys, look.dash, color=look.colour, marker=look.marker, label=look.label if label else None)


def _select(rows: Sequence[Row], suite: str, threads: int = 1) -> list[Row]:
    return [
        r for r in rows if r.suite == suite and r.threads == threads and r.dtype == "float32"
    ]  # fmt: skip


def _legend(figure: Figure, axes: Axes | Sequence[Axes], columns: int = 6) -> None:
    found: dict[str, Any] = {}
    for one in [axes] if isinstance(axes, Axes) else axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=columns)


#: Small to large; not the colours of providers.
_SIZE_LOOKS = (("#9467bd", "o"), ("#3aa6b9", "^"), ("#a38a00", "D"), ("#c8504a", "s"))


def speedups(rows: Sequence[Row]) -> Figure | None:
    """How many times as fast as torch each operation with kernels of its own is, by size."""
    chosen = [r for r in _select(rows, "ops") if r.op in OPS and OPS[r.op].native]
    table: dict[str, dict[int, float]] = {}
    for group in by_subject(chosen):
        ratio = speedup(group, TORCH)
        if ratio is not None:
            table.setdefault(group[OURS].case, {})[group[OURS].size] = ratio
    if not table:
        return None
    common = [16, 4 << 10, 1 << 20, 16 << 20]
    present = {size for ratios in table.values() for size in ratios}
    sizes = [size for size in common if size in present] or sorted(present)[:4]
    names = sorted(table, key=lambda name: statistics.fmean(map(math.log, table[name].values())))
    half = -(-len(names) // 2)
    columns = [names[half:], names[:half]] if len(names) > 12 else [names]
    figure, grid = plt.subplots(
        1,
        len(columns),
        figsize=(9, 1.1 + 0.17 * len(columns[0])),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for axes, column in zip(grid[0], columns, strict=True):
        for size, (colour, marker) in zip(sizes, _SIZE_LOOKS, strict=False):
            points = [(table[name][size], y) for y, name in enumerate(column) if size in table[name]]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, marker, color=colour, markersize=4, label=f"{_label(size)} elements")
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(column)), column, fontsize=7.5)
        axes.set_ylim(-0.8, len(column) - 0.2)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="both")
        _ratio_ticks(axes)
    figure.supxlabel(
        "time of torch / time of inplace_ext, float32, one thread (right of 1x is faster)", fontsize=9
    )
    _legend(figure, grid[0])
    return figure


def _ratio_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    ticks = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    _times(axes.xaxis)


ROOFLINE = ("mul_ number", "exp_", "tanh_", "pow_ 1.5", "masked_fill_", "add_ tensor")


def roofline(rows: Sequence[Row]) -> Figure | None:
    """Bytes a second by size, against those of a scaling loop."""
    chosen = [r for r in _select(rows, "ops") if r.gb_per_s and r.size >= 1 << 10]
    cases = [name for name in ROOFLINE if len({r.size for r in chosen if r.case == name}) > 1]
    if not cases:
        return None
    columns = min(3, len(cases))
    figure, grid = plt.subplots(
        -(-len(cases) // columns), columns, figsize=(9, 1 + 2.1 * -(-len(cases) // columns)),
        layout="constrained", sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    panels = list(grid.flat)
    for axes, case in zip(panels, cases, strict=False):
        mine = [r for r in chosen if r.case == case]
        for provider in (LIMIT, NUMEXPR, NUMPY, TORCH, OURS):
            points = [(r.size, r.gb_per_s or 0.0) for r in mine if r.provider == provider]
            if points:
                _line(axes, provider, points)
        axes.set_title(case)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(axis="y")
    sizes = sorted({r.size for r in chosen if r.case in cases})
    _sizes(panels[0].xaxis, [s for s in sizes if s.bit_length() % 4 == 1] or sizes)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    figure.supxlabel("elements of float32", fontsize=9)
    figure.supylabel("GB/s, read and written", fontsize=9)
    for axes in panels[len(cases) :]:
        axes.remove()
    _legend(figure, panels[: len(cases)])
    return figure


OVERHEAD_SIZE = 16


def overhead(rows: Sequence[Row]) -> Figure | None:
    """What a call on a few elements costs, whoever makes it."""
    chosen = [r for r in _select(rows, "overhead") if r.size == OVERHEAD_SIZE]
    if not chosen:
        return None
    cases = list(dict.fromkeys(r.case for r in chosen))
    providers = [p for p in (OURS, TORCH, COMPILE, NUMPY, NUMEXPR) if any(r.provider == p for r in chosen)]
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.42 * len(cases)), layout="constrained")
    for y, case in enumerate(reversed(cases)):
        found = {r.provider: r.median_us for r in chosen if r.case == case}
        axes.plot([min(found.values()), max(found.values())], [y, y], color=FAINT, linewidth=1, zorder=1)
        for provider in providers:
            if provider in found:
                look = LOOKS[provider]
                axes.plot(
                    found[provider], y, look.marker, color=look.colour, markersize=7,
                    label=look.label if y == len(cases) - 1 else None,
                )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), [*reversed(cases)])
    axes.set_ylim(-0.6, len(cases) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.grid(axis="x")
    axes.set_xlabel(f"microseconds a call, {OVERHEAD_SIZE} elements of float32 (left is better)")
    _legend(figure, axes)
    return figure


def chains(rows: Sequence[Row]) -> Figure | None:
    """Chains by length on the largest tensors: one pass, or as many as operations."""
    chosen = [r for r in _select(rows, "fuse") if r.case.startswith("chain of ")]
    lengths: dict[int, set[str]] = {}
    for row in chosen:
        lengths.setdefault(row.size, set()).add(row.case)
    if not lengths:
        return None
    size = max(lengths, key=lambda s: (len(lengths[s]), s))
    chosen = [r for r in chosen if r.size == size]
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for provider in (NUMPY, NUMEXPR, TORCH, COMPILE, LIMIT, OURS):
        points = [(int(r.case.split()[-1]), r.median_us / 1e3) for r in chosen if r.provider == provider]
        if points:
            _line(axes, provider, points)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([m * 10**k for k in range(-4, 6) for m in (1, 2, 5) if low <= m * 10**k <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted({int(r.case.split()[-1]) for r in chosen}))
    axes.set_xlabel("operations in the chain")
    axes.set_ylabel(f"milliseconds, {_label(size)} elements of float32")
    axes.grid(axis="y")
    _legend(figure, axes, columns=3)
    return figure


def scaling(rows: Sequence[Row]) -> Figure | None:
    """What more threads bring, by operation and size."""
    table: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for row in rows:
        if row.dtype == "float32" and row.provider in (OURS, TORCH) and row.suite in ("ops", "layouts"):
            name = row.case if row.layout == "contiguous" else f"{row.layout} {row.case}"
            table.setdefault((name, row.size), {}).setdefault(row.provider, {})[row.threads] = row.median_us
    table = {key: by for key, by in table.items() if OURS in by and len(by[OURS]) > 1}
    if not table:
        return None
    most = max(n for by in table.values() for n in by[OURS])
    labels = [f"{name}, {_label(size)}" for name, size in table]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.27 * len(labels)), layout="constrained")
    for provider, shift in ((TORCH, -0.14), (OURS, 0.14)):
        look = LOOKS[provider]
        points = [
            (by[provider][1] / by[provider][most], y + shift)
            for y, by in enumerate(reversed(table.values()))
            if {1, most} <= set(by.get(provider, {}))
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, look.marker, color=look.colour, markersize=6, label=look.label)
    axes.axvline(1, color=INK, linewidth=1)
    axes.axvline(most, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(labels)), labels[::-1])
    axes.tick_params(axis="y", length=0)
    _times(axes.xaxis)
    axes.grid(axis="both")
    axes.set_xlabel(f"time on one thread / time on {most} (dashed: {most} times as fast), float32")
    _legend(figure, axes)
    return figure


PICTURES: dict[str, Draw] = {
    "speedup": speedups,
    "roofline": roofline,
    "overhead": overhead,
    "chains": chains,
    "scaling": scaling,
}


def _lighter(svg: str) -> str:
    """Without comments, indentation and the strokes that markers have in the colour of their fill."""
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<use [^>]*style="fill: (#\w+)); stroke: \2"', r'\1"', svg)
    return re.sub(r"\n\s+", "\n", svg)


def draw(
    rows: Sequence[Row], folder: Path, formats: Sequence[str] = ("svg",), only: Sequence[str] | None = None
) -> list[Path]:
    """Writes the pictures that the rows are enough for; a file of several commits shows the last."""
    unknown = set(only or ()) - set(PICTURES)
    if unknown:
        raise ValueError(f"plot: no picture {', '.join(sorted(unknown))}, only {', '.join(PICTURES)}")
    latest = {row.subject: row.place for row in rows}
    rows = [row for row in rows if row.place == latest[row.subject]]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        for name, picture in PICTURES.items():
            if only and name not in only:
                continue
            figure = picture(rows)
            if figure is None:
                print(f"{name}: the results have no rows for it")
                continue
            for kind in formats:
                path = folder / f"{name}.{kind}"
                figure.savefig(path, metadata={"Date": None} if kind == "svg" else {}, dpi=150)
                if kind == "svg":
                    path.write_text(_lighter(path.read_text()))
                written.append(path)
            plt.close(figure)
    return written
