"""Writing where an index or a mask says, each beside torch's method on the same tensors.

Indices and masks are random: half of the places, each once, in random order, or `repeated` ones, drawn with
repetition. A mask is true with the probability that is said. `setitem_` is x[index] = value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work
from inplace_ext._delegate import torch_method
from inplace_ext._table import ALL_OPS

Arguments = Callable[[torch.Tensor], tuple[Any, ...]]


@dataclass(frozen=True)
class Line:
    """A call on a tensor of a shape: what is selected, as the layout in the results, and the arguments."""

    op: str
    shape: tuple[int, ...]
    layout: str
    #: Made for the view that is changed; the last of them is what is written.
    arguments: Arguments
    dtype: torch.dtype = torch.float32
    view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    #: Measured by the check as well.
    quick: bool = False

    @property
    def name(self) -> str:
        return "x[...] = values" if self.op == "setitem_" else self.op


def values(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.randint(1, 100, shape, device=like.device).to(like.dtype)


def half(x: torch.Tensor, n: int) -> torch.Tensor:
    return torch.randperm(n, device=x.device)[: max(n // 2, 1)]


def repeated(count: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    return lambda x, n: torch.randint(0, n, (count,), device=x.device)


def along(
    dim: int, index: Callable[[torch.Tensor, int], torch.Tensor] = half, source: bool = True
) -> Arguments:
    """An index of a dim, and what is written there."""

    def arguments(x: torch.Tensor) -> tuple[Any, ...]:
        i = index(x, x.shape[dim])
        some = [len(i) if d == dim else n for d, n in enumerate(x.shape)]
        return (dim, i, values(x, *some) if source else 7)

    return arguments


def of(op: str, dim: int, index: Callable[[torch.Tensor, int], torch.Tensor] = half) -> Arguments:
    return along(dim, index, source=op != "index_fill_")


def without_dim(arguments: Arguments, *more: Any) -> Arguments:
    return lambda x: (*arguments(x)[1:], *more)


def scattered(dim: int, source: bool = True, transposed: bool = False) -> Arguments:
    def arguments(x: torch.Tensor) -> tuple[Any, ...]:
        index = torch.randint(0, x.shape[dim], x.shape, device=x.device)
        index = index.t().contiguous().t() if transposed else index
        return (dim, index, values(x, *x.shape) if source else 7)

    return arguments


def from_the_end(x: torch.Tensor, n: int) -> torch.Tensor:
    return torch.randint(-n, n, (n,), device=x.device)


def masked(p: float, source: bool = False, dims: int = 99) -> Arguments:
    def arguments(x: torch.Tensor) -> tuple[Any, ...]:
        mask = torch.rand(x.shape[:dims], device=x.device) < p
        return (mask, values(x, int(mask.sum()), *x.shape[dims:]) if source else 7)

    return arguments


def pairs(*more: Any, number: bool = False) -> Arguments:
    def arguments(x: torch.Tensor) -> tuple[Any, ...]:
        index = tuple(repeated(MI)(x, n) for n in x.shape)
        return (index, 7 if number else values(x, MI), *more)

    return arguments


def fixed(index: Any, *shape: int) -> Arguments:
    return lambda x: (index, values(x, *shape) if shape else 7)


MI = 1 << 20
FLAT, ROWS, NARROW, SQUARE, SMALL = (16 * MI,), (1 << 16, 256), (MI, 8), (4096, 4096), (64, 16)
#: In cache: what a point, a line and a row cost.
MIDDLE, SHORT, TINY = (300, 500), (2000, 100), (30, 20)
SCATTERS = ("scatter_", "scatter_add_")
ALONG = ("index_fill_", "index_copy_", "index_add_")
OTHERS = (torch.bfloat16, torch.float64)

LINES = [
    *(Line("masked_fill_", FLAT, f"a mask, p={p}", masked(p)) for p in (0.0, 0.01, 0.1, 0.5, 1.0)),
    *(Line("setitem_", FLAT, f"a mask, p={p}, a number", masked(p)) for p in (0.0, 0.01, 0.1, 0.5, 1.0)),
    *(Line("setitem_", FLAT, "a mask, p=0.5, a number", masked(0.5), d) for d in OTHERS),
    Line("setitem_", (16,), "a mask, p=0.5, a number", masked(0.5), quick=True),
    Line("setitem_", (4096,), "a mask, p=0.5, a number", masked(0.5), quick=True),
    *(Line("setitem_", FLAT, f"a mask, p={p}", masked(p, True)) for p in (0.01, 0.5)),
    *(Line("masked_scatter_", FLAT, f"a mask, p={p}", masked(p, True)) for p in (0.01, 0.5)),
    Line("masked_scatter_", (MI,), "a mask, p=0.5", masked(0.5, True), quick=True),
    Line("setitem_", ROWS, "a mask of rows, a number", masked(0.5, dims=1)),
    Line("setitem_", ROWS, "a mask of rows", masked(0.5, True, dims=1)),
    *(Line(op, ROWS, "rows of 256", of(op, 0)) for op in ALONG),
    *(Line(op, ROWS, "rows of 256", of(op, 0), d) for d in OTHERS for op in ALONG),
    Line("index_add_", (2048, 256), "rows of 256, repeated", along(0, repeated(16 * 2048))),
    Line("setitem_", ROWS, "rows of 256", without_dim(along(0))),
    Line("setitem_", ROWS, "rows of 256, a number", without_dim(along(0, source=False))),
    *(Line(op, NARROW, "rows of 8", of(op, 0)) for op in ALONG),
    *(Line(op, SMALL, "64 rows of 16", of(op, 0), quick=True) for op in ALONG),
    *(Line(op, (256, 1 << 15), "columns", of(op, 1)) for op in ALONG),
    *(Line(op, FLAT, "1 Mi elements", of(op, 0, repeated(MI))) for op in ALONG),
    *(Line(op, (4096,), "half of the elements", of(op, 0), quick=True) for op in ALONG),
    *(Line(op, (16,), "half of the elements", of(op, 0), quick=True) for op in ALONG),
    Line("index_copy_", (1024, 4096), "transposed rows", along(0), view=torch.t),
    *(Line(op, (4096, 1024), f"dim {dim}", scattered(dim), quick=dim == 1)
      for op in SCATTERS for dim in (0, 1)),
    *(Line(op, shape, f"dim {dim} of {shape[0]} x {shape[1]}", scattered(dim), quick=True)
      for op in SCATTERS for shape in (MIDDLE, SHORT) for dim in (0, 1)),
    *(Line(op, MIDDLE, f"dim {dim}, transposed index", scattered(dim, transposed=True), quick=True)
      for op in SCATTERS for dim in (0, 1)),
    *(Line(op, MIDDLE, f"dim {dim}, transposed", scattered(dim), view=torch.t, quick=True)
      for op in SCATTERS for dim in (0, 1)),
    *(Line(op, MIDDLE, "columns of 300 x 500", of(op, 1), quick=True) for op in ALONG),
    Line("index_fill_", MIDDLE, "columns from the end", along(1, from_the_end, False), quick=True),
    Line("put_", (100_000,), "from the end", without_dim(along(0, from_the_end)), quick=True),
    *(Line("setitem_", SHORT, "1:, 2:-1, a number", fixed((slice(1, None), slice(2, -1))), d, quick=True)
      for d in (torch.float32, torch.bfloat16, torch.uint8)),
    Line("setitem_", SHORT, "1:, 2:-1", fixed((slice(1, None), slice(2, -1)), 1999, 97), quick=True),
    Line("setitem_", MIDDLE, "::2, ::3, a number",
         fixed((slice(None, None, 2), slice(None, None, 3))), quick=True),
    Line("setitem_", SHORT, "a mask, p=0.5, a number", masked(0.5), torch.bool, quick=True),
    Line("masked_fill_", TINY, "a mask of columns", lambda x: (torch.rand(20, device=x.device) < 0.5, 7),
         quick=True),
    Line("masked_scatter_", TINY, "a mask, p=0.5, transposed", masked(0.5, True), view=torch.t, quick=True),
    Line("scatter_", (4096, 1024), "dim 1, a number", scattered(1, False)),
    Line("scatter_", SMALL, "dim 1 of 64 x 16", scattered(1), quick=True),
    Line("scatter_", (64, 10), "one-hot", lambda x: (1, repeated(64)(x, 10).view(64, 1), 1), quick=True),
    Line("put_", FLAT, "1 Mi elements", without_dim(along(0, repeated(MI)))),
    Line("put_", FLAT, "1 Mi elements, accumulated", without_dim(along(0, repeated(MI)), True)),
    Line("put_", (4096,), "half of the elements", without_dim(along(0)), quick=True),
    Line("index_put_", SQUARE, "1 Mi pairs", pairs()),
    Line("index_put_", SQUARE, "1 Mi pairs, accumulated", pairs(True)),
    Line("index_put_", SMALL, "half of 64 rows", lambda x: ((half(x, 64),), values(x, 32, 16)), quick=True),
    Line("setitem_", SQUARE, "1 Mi pairs, a number", pairs(number=True)),
    Line("setitem_", SMALL, "3", fixed(3), quick=True),
    Line("setitem_", SMALL, "1:3", fixed(slice(1, 3)), quick=True),
    Line("setitem_", SMALL, "..., 2:5", fixed((..., slice(2, 5)), 64, 3), quick=True),
    Line("setitem_", SMALL, "[1, 5]", fixed([1, 5]), quick=True),
    Line("setitem_", SQUARE, "1:-1, 1:-1", fixed((slice(1, -1), slice(1, -1)), 4094, 4094)),
    Line("setitem_", SQUARE, ":, ::2", fixed((slice(None), slice(None, None, 2)))),
]  # fmt: skip


def _prepare(line: Line, dtype: torch.dtype, device: str) -> Work:
    x = values(torch.empty(0, dtype=dtype, device=device), *line.shape)
    arguments = line.arguments(line.view(x))
    ours, theirs = getattr(ie, line.op), torch_method(ALL_OPS[line.op])
    if line.op == "setitem_":
        theirs = torch.Tensor.__setitem__
    sides = [Side(OURS, lambda x: ours(x, *arguments)), Side(TORCH, lambda x: theirs(x, *arguments))]
    return Work(sides, x, line.view)


def cases(selection: Selection) -> Iterator[Case]:
    for line in LINES:
        other = selection.dtypes is not None and line.dtype != torch.float32
        if other or (selection.quick and not line.quick):
            continue
        for dtype in selection.dtypes or [line.dtype]:
            work = functools.partial(_prepare, line, dtype, selection.device)
            yield Case(
                "indexing", line.name, line.op, dtype, math.prod(line.shape), work,
                line.layout, selection.thread_counts, selection.device,
            )  # fmt: skip


SUITE = Suite("indexing", "writing where an index or a mask says, beside torch", cases)
