"""contiguous_ beside ``x.contiguous()`` and a copy back into the storage, and beside the former alone.

Ours leaves out the look at who else has the storage: the harness has, for the next round.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch

from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work
from inplace_ext import _native

Sizes = tuple[int, ...]

#: Sizes as they lie in memory, the order of the dims that is asked for, and the dtype.
CASES: list[tuple[Sizes, Sizes, torch.dtype]] = [
    ((64, 64), (1, 0), torch.float32),
    ((500, 300), (1, 0), torch.float32),
    ((4096, 4096), (1, 0), torch.float32),
    ((3001, 5000), (1, 0), torch.float32),
    ((5000, 3001), (1, 0), torch.float32),
    ((4099, 4093), (1, 0), torch.float32),
    ((4096, 14336), (1, 0), torch.float32),
    ((3, 5592407), (1, 0), torch.float32),
    ((5592407, 3), (1, 0), torch.float32),
    ((4096, 11008), (1, 0), torch.bfloat16),
    ((8192, 8192), (1, 0), torch.uint8),
    ((2000, 2001), (1, 0), torch.complex128),
    ((64, 3, 256, 256), (0, 2, 3, 1), torch.float32),
    ((64, 256, 256, 3), (0, 3, 1, 2), torch.float32),
    ((64, 512, 512, 3), (0, 3, 1, 2), torch.uint8),
    ((8, 1024, 16, 128), (0, 2, 1, 3), torch.float32),
    ((100000, 13, 13), (0, 2, 1), torch.float32),
    ((64, 64, 64, 64), (3, 2, 1, 0), torch.float32),
]
QUICK = 4


def _prepare(sizes: Sizes, order: Sizes, dtype: torch.dtype, device: str) -> Work:
    source = torch.arange(math.prod(sizes), device=device).remainder_(251).to(dtype)
    shape = [sizes[d] for d in order]

    def permuted(x: torch.Tensor) -> torch.Tensor:
        return x.view(sizes).permute(order)

    def ours(x: torch.Tensor) -> torch.Tensor:
        changed = permuted(x)
        if _native.module is None or not _native.module.rearrange(changed, False):
            raise RuntimeError("no kernels: there is nothing to measure")
        return changed

    def back(x: torch.Tensor) -> torch.Tensor:
        return x.copy_(permuted(x).contiguous().view(-1)).view(shape)

    sides = [Side(OURS, ours), Side(TORCH, back), Side("contiguous()", lambda x: permuted(x).contiguous())]
    return Work(sides, source, moved=2 * source.nbytes)


def cases(selection: Selection) -> Iterator[Case]:
    if selection.device != "cpu":
        return
    for sizes, order, dtype in CASES[:QUICK] if selection.quick else CASES:
        layout = f"{' x '.join(map(str, sizes))} to {', '.join(map(str, order))}"
        work = functools.partial(_prepare, sizes, order, dtype, selection.device)
        yield Case(
            "layout_changes", "contiguous_", "contiguous_", dtype, math.prod(sizes), work, layout,
            selection.thread_counts,
        )  # fmt: skip


SUITE = Suite("layout_changes", "contiguous_ beside torch's contiguous and a copy back", cases)
