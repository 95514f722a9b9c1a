"""Writing where an index or a mask says, each beside torch's method on the same tensors.

    python benchmarks/indexing.py             # the whole table, one thread
    python benchmarks/indexing.py --check     # in addition, exits with 1 where a floor is missed

Timed as in ops.py, in float32 unless said. Indices and masks are random: `half` of the places, each once, in
random order, or `repeated` ones, drawn with repetition. A mask is true with the probability that is said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import compare, report

import inplace_ext as ie
from inplace_ext import testing
from inplace_ext._delegate import torch_method
from inplace_ext._table import ALL_OPS

BUDGET = 0.4
EVERYWHERE = 0.97


@dataclass(frozen=True)
class Case:
    """A call on a tensor of a shape, and the least ratio of torch's time to ours."""

    label: str
    name: str
    shape: tuple[int, ...]
    arguments: Callable[[tuple[int, ...], torch.dtype], tuple[Any, ...]]
    floor: float = EVERYWHERE
    dtype: torch.dtype = torch.float32
    batch: int = 1
    view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x


def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(1, 100, shape).to(dtype)


def half(n: int) -> torch.Tensor:
    return torch.randperm(n)[: max(n // 2, 1)]


def repeated(n: int, count: int) -> torch.Tensor:
    return torch.randint(0, n, (count,))


def along(
    dim: int, index: Callable[[int], torch.Tensor], source: bool = True
) -> Callable[..., tuple[Any, ...]]:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        i = index(shape[dim])
        some = [len(i) if d == dim else n for d, n in enumerate(shape)]
        return (dim, i, values(*some, dtype=dtype) if source else 7)

    return arguments


def scattered(dim: int, source: bool = True) -> Callable[..., tuple[Any, ...]]:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return (dim, torch.randint(0, shape[dim], shape), values(*shape, dtype=dtype) if source else 7)

    return arguments


def masked(p: float, source: bool = False, dims: int = 99) -> Callable[..., tuple[Any, ...]]:
    def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        mask = torch.rand(shape[:dims]) < p
        return (mask, values(int(mask.sum()), *shape[dims:], dtype=dtype) if source else 7)

    return arguments


ROWS, SMALL = (1 << 16, 256), (64, 16)
MI = 1 << 20
some = torch.bfloat16, torch.float64
DENSITIES = ((0.5, 6.0), *((p, EVERYWHERE) for p in (0.0, 0.01, 0.1, 1.0)))


def often(n: int) -> torch.Tensor:
    return repeated(n, MI)


def pairs(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(repeated(n, MI) for n in shape)


CASES = [
    *(Case(f"masked_fill_, 16 Mi, p={p}", "masked_fill_", (16 * MI,), masked(p), floor)
      for p, floor in DENSITIES),
    *(Case(f"x[mask] = 7, 16 Mi, p={p}", "setitem_", (16 * MI,), masked(p), floor)
      for p, floor in DENSITIES),
    *(Case(f"x[mask] = 7, 16 Mi, {str(d)[6:]}", "setitem_", (16 * MI,), masked(0.5), dtype=d) for d in some),
    Case("x[mask] = 7, 16 elements", "setitem_", (16,), masked(0.5), batch=1000),
    Case("x[mask] = 7, 4 Ki", "setitem_", (4096,), masked(0.5), batch=200),
    *(Case(f"x[mask] = values, 16 Mi, p={p}", "setitem_", (16 * MI,), masked(p, True)) for p in (0.01, 0.5)),
    *(Case(f"masked_scatter_, 16 Mi, p={p}", "masked_scatter_", (16 * MI,), masked(p, True))
      for p in (0.01, 0.5)),
    Case("x[row mask] = 7", "setitem_", ROWS, masked(0.5, dims=1)),
    Case("x[row mask] = values", "setitem_", ROWS, masked(0.5, True, dims=1)),
    Case("index_fill_, rows of 256", "index_fill_", ROWS, along(0, half, False), 1.5),
    Case("index_copy_, rows of 256", "index_copy_", ROWS, along(0, half), 1.5),
    Case("index_add_, rows of 256", "index_add_", ROWS, along(0, half)),
    Case("index_add_, 2 Ki rows, repeated", "index_add_", (2048, 256),
         along(0, lambda n: repeated(n, 16 * n))),
    Case("x[index] = values, rows of 256", "setitem_", ROWS, lambda s, d: along(0, half)(s, d)[1:]),
    Case("x[index] = 7, rows of 256", "setitem_", ROWS, lambda s, d: along(0, half, False)(s, d)[1:]),
    *(Case(f"{name}, rows of 256, {str(d)[6:]}", name, ROWS, along(0, half, name != "index_fill_"),
           EVERYWHERE, d)
      for d in some for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, rows of 8", name, (MI, 8), along(0, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, 64 rows of 16", name, SMALL, along(0, half, name != "index_fill_"), batch=1000)
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, columns", name, (256, 1 << 15), along(1, half, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, elements of 16 Mi", name, (16 * MI,), along(0, often, name != "index_fill_"))
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, elements of 4 Ki", name, (4096,), along(0, half, name != "index_fill_"), batch=100)
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, 16 elements", name, (16,), along(0, half, name != "index_fill_"), batch=1000)
      for name in ("index_fill_", "index_copy_", "index_add_")),
    *(Case(f"{name}, dim {dim}", name, (4096, 1024), scattered(dim))
      for name in ("scatter_", "scatter_add_") for dim in (0, 1)),
    Case("scatter_ of a number, dim 1", "scatter_", (4096, 1024), scattered(1, False)),
    Case("scatter_, 64 x 16", "scatter_", SMALL, scattered(1), batch=500),
    Case("scatter_, 64 x 10, one-hot", "scatter_", (64, 10),
         lambda s, d: (1, torch.randint(0, 10, (64, 1)), 1), batch=1000),
    Case("put_, 1 Mi of 16 Mi", "put_", (16 * MI,), lambda s, d: along(0, often)(s, d)[1:]),
    Case("put_, accumulate", "put_", (16 * MI,),
         lambda s, d: (*along(0, often)(s, d)[1:], True)),
    Case("index_put_, pairs", "index_put_", (4096, 4096),
         lambda s, d: (pairs(s), values(MI, dtype=d))),
    Case("index_put_, pairs, accumulate", "index_put_", (4096, 4096),
         lambda s, d: (pairs(s), values(MI, dtype=d), True)),
    Case("x[i, j] = 7", "setitem_", (4096, 4096), lambda s, d: (pairs(s), 7)),
    Case("x[3] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: (3, 7), batch=1000),
    Case("x[1:3] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: (slice(1, 3), 7), batch=1000),
    Case("x[..., 2:5] = values, 64 x 16", "setitem_", SMALL,
         lambda s, d: ((..., slice(2, 5)), values(64, 3, dtype=d)), batch=1000),
    Case("x[[1, 5]] = 7, 64 x 16", "setitem_", SMALL, lambda s, d: ([1, 5], 7), batch=1000),
    Case("x[1:-1, 1:-1] = values, 4096", "setitem_", (4096, 4096),
         lambda s, d: ((slice(1, -1), slice(1, -1)), values(4094, 4094, dtype=d))),
    Case("x[:, ::2] = 7, 4096", "setitem_", (4096, 4096),
         lambda s, d: ((slice(None), slice(None, None, 2)), 7)),
    Case("transposed, index_copy_", "index_copy_", (1024, 4096), along(0, half), view=lambda x: x.t()),

]  # fmt: skip


def measure(case: Case) -> tuple[list[float], str]:
    """Seconds of ours and of torch's, and the path that ours took."""
    torch.manual_seed(0)
    ours, theirs = getattr(ie, case.name), torch_method(ALL_OPS[case.name])
    if case.name == "setitem_":
        theirs = torch.Tensor.__setitem__
    source = values(*case.shape, dtype=case.dtype)
    view = case.view(source)
    arguments = case.arguments(tuple(view.shape), case.dtype)
    results = [source.clone(), source.clone()]
    ours(case.view(results[0]), *arguments)
    path = testing.last_path()
    theirs(case.view(results[1]), *arguments)
    torch.testing.assert_close(*results)
    del results
    batch = [source.clone() for _ in range(case.batch)]
    sides = [lambda x: ours(case.view(x), *arguments), lambda x: theirs(case.view(x), *arguments)]
    return compare(sides, source, batch, BUDGET), path


if __name__ == "__main__":
    cases = [(case.label, partial(measure, case), (case.floor,)) for case in CASES]
    sys.exit(report(__doc__ or "", cases, ("torch",)))
