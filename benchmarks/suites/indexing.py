"""Writing where an index or a mask says, each beside torch's method on the same tensors.

Indices and masks are random: `half` of the places, each once and in random order, or drawn with repetition. A
mask is true with the probability that is said.
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

Arguments = Callable[[tuple[int, ...], torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True)
class Line:
    """A call on a tensor of a shape; ``quick`` ones tell a regression."""

    label: str
    name: str
    shape: tuple[int, ...]
    arguments: Arguments
    dtype: torch.dtype = torch.float32
    view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    quick: bool = False


def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(1, 100, shape).to(dtype)


def half(n: int) -> torch.Tensor:
    return torch.randperm(n)[: max(n // 2, 1)]


def repeated(n: int, count: int) -> torch.Tensor:
    return torch.randint(0, n, (count,))


def along(dim: int, index: Callable[[int], torch.Tensor], source: bool = True) -> Arguments:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        i = index(shape[dim])
        some = [len(i) if d == dim else n for d, n in enumerate(shape)]
        return (dim, i, values(*some, dtype=dtype) if source else 7)

    return arguments


def scattered(dim: int, source: bool = True) -> Arguments:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return (dim, torch.randint(0, shape[dim], shape), values(*shape, dtype=dtype) if source else 7)

    return arguments


def masked(p: float, source: bool = False, dims: int = 99) -> Arguments:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        mask = torch.rand(shape[:dims]) < p
        return (mask, values(int(mask.sum()), *shape[dims:], dtype=dtype) if source else 7)

    return arguments


ROWS, SMALL = (1 << 16, 256), (64, 16)
MI = 1 << 20
some = torch.bfloat16, torch.float64
DENSITIES = (0.5, 0.0, 0.01, 0.1, 1.0)


def often(n: int) -> torch.Tensor:
    return repeated(n, MI)


def pairs(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(repeated(n, MI) for n in shape)


LINES = [
    *(Line(f"masked_fill_, 16 Mi, p={p}", "masked_fill_", (16 * MI,), masked(p), quick=p == 0.5)
      for p in DENSITIES),
    *(Line(f"x[mask] = 7, 16 Mi, p={p}", "setitem_", (16 * MI,), masked(p), quick=p == 0.5)
      for p in DENSITIES),
    *(Line(f"x[mask] = 7, 16 Mi, {str(d)[6:]}", "setitem_", (16 * MI,), masked(0.5), dtype=d) for d in some),
    Line("x[mask] = 7, 16 elements", "setitem_", (16,), masked(0.5)),
    Line("x[mask] = 7, 4 Ki", "setitem_", (4096,), masked(0.5)),
    *(Line(f"x[mask] = values, 16 Mi, p={p}", "setitem_", (16 * MI,), masked(p, True)) for p in (0.01, 0.5)),
    *(Line(f"masked_scatter_, 16 Mi, p={p}", "masked_scatter_", (16 * MI,), masked(p, True))
      for p in (0.01, 0.5)),
    Line("x[row mask] = 7", "setitem_", ROWS, masked(0.5, dims=1)),
    Line("x[row mask] = values", "setitem_", ROWS, masked(0.5, True, dims=1)),
    Line("index_fill_, rows of 256", "index_fill_", ROWS, along(0, half, False), quick=True),
    Line("index_copy_, rows of 256", "index_copy_", ROWS, along(0, half), quick=True),
    Line("index_add_, rows of 256", "index_add_", ROWS, along(0, half)),
    Line("index_add_, 2 Ki rows, repeated", "index_add_", (2048, 256),
         along(0, lambda n: repeated(n, 16 * n))),
    Line("x[index] = values, rows of 256", "setitem_", ROWS, lambda s, d: along(0, half)(s, d)[1:]),
    Line("x[index] = 7, rows of 256", "setitem_", ROWS, lambda s, d: along(0, half, False)(s, d)[1:]),
    *(Line(f"{name}, rows of 256, {str(d)[6:]}", name, ROWS, along(0, half, name != "index_fill_"),
           dtype=d)
      for d in some for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, rows of 8", name, (MI, 8), along(0, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, 64 rows of 16", name, SMALL, along(0, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, columns", name, (256, 1 << 15), along(1, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, elements of 16 Mi", name, (16 * MI,), along(0, often, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, elements of 4 Ki", name, (4096,), along(0, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, 16 elements", name, (16,), along(0, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Line(f"{name}, dim {dim}", name, (4096, 1024), scattered(dim))
      for name in ("scatter_", "scatter_add_") for dim in (0, 1)),
    Line("scatter_ of a number, dim 1", "scatter_", (4096, 1024), scattered(1, False)),
    Line("scatter_, 64 x 16", "scatter_", SMALL, scattered(1)),
    Line("scatter_, 64 x 10, one-hot", "scatter_", (64, 10),
         lambda s, d: (1, torch.randint(0, 10, (64, 1)), 1)),
    Line("put_, 1 Mi of 16 Mi", "put_", (16 * MI,), lambda s, d: along(0, often)(s, d)[1:]),
    Line("put_, accumulate", "put_", (16 * MI,),
         lambda s, d: (*along(0, often)(s, d)[1:], True)),
    Line("index_put_, pairs", "index_put_", (4096, 4096),
         lambda s, d: (pairs(s), values(MI, dtype=d))),
    Line("index_put_, pairs, accumulate", "index_put_", (4096, 4096),
         lambda s, d: (pairs(s), values(MI, dtype=d), True)),
    Line("x[i, j] = 7", "setitem_", (4096, 4096), lambda s, d: (pairs(s), 7)),
    Line("x[3] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: (3, 7)),
    Line("x[1:3] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: (slice(1, 3), 7)),
    Line("x[..., 2:5] = values, 64 x 16", "setitem_", SMALL,
         lambda s, d: ((..., slice(2, 5)), values(64, 3, dtype=d))),
    Line("x[[1, 5]] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: ([1, 5], 7)),
    Line("x[1:-1, 1:-1] = values, 4096", "setitem_", (4096, 4096),
         lambda s, d: ((slice(1, -1), slice(1, -1)), values(4094, 4094, dtype=d))),
    Line("x[:, ::2] = 7, 4096", "setitem_", (4096, 4096),
         lambda s, d: ((slice(None), slice(None, None, 2)), 7)),
    Line("transposed, index_copy_", "index_copy_", (1024, 4096), along(0, half), view=lambda x: x.t()),

]  # fmt: skip


def _prepare(line: Line) -> Work:
    torch.manual_seed(0)
    ours, theirs = getattr(ie, line.name), torch_method(ALL_OPS[line.name])
    if line.name == "setitem_":
        theirs = torch.Tensor.__setitem__
    source = values(*line.shape, dtype=line.dtype)
    arguments = line.arguments(tuple(line.view(source).shape), line.dtype)

    def assign(x: torch.Tensor) -> torch.Tensor:
        theirs(x, *arguments)
        return x

    return Work([Side(OURS, lambda x: ours(x, *arguments)), Side(TORCH, assign)], source, line.view)


def cases(selection: Selection) -> Iterator[Case]:
    for line in LINES:
        if selection.quick and not line.quick:
            continue
        yield Case(
            "indexing",
            line.label,
            line.name,
            line.dtype,
            math.prod(line.shape),
            functools.partial(_prepare, line),
            threads=selection.thread_counts,
        )


SUITE = Suite("indexing", "writing where an index or a mask says, beside torch's", cases)
