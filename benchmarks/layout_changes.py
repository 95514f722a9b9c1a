"""contiguous_ beside what torch has for it: ``x.contiguous()``, and a copy of that back into the storage.

    python benchmarks/layout_changes.py             # the whole table, one thread
    python benchmarks/layout_changes.py --check     # in addition, exits with 1 where a floor is missed

Timed as in ops.py. The second ratio is to ``x.contiguous()`` alone, which needs a second storage of the same
size and leaves the first as it was.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import compare, report

import inplace_ext as ie
from inplace_ext import _native, testing

BUDGET = 0.5


@dataclass(frozen=True)
class Case:
    """Sizes as they lie in memory, the order that is asked for, and the least ratios."""

    label: str
    sizes: tuple[int, ...]
    order: tuple[int, ...] = (1, 0)
    dtype: torch.dtype = torch.float32
    floors: tuple[float, float] = (1.0, 0.0)
    batch: int = 1


CASES = [
    Case("64 x 64", (64, 64), floors=(0.0, 0.0), batch=100),
    Case("500 x 300", (500, 300), floors=(0.0, 0.0), batch=10),
    Case("4096 x 4096", (4096, 4096), floors=(1.0, 0.0)),
    Case("5000 x 3001", (5000, 3001), floors=(0.3, 0.0)),
    Case("3001 x 5000", (3001, 5000), floors=(0.3, 0.0)),
    Case("4099 x 4093", (4099, 4093), floors=(0.3, 0.0)),
    Case("4096 x 14336", (4096, 14336)),
    Case("3 x 5592407", (3, 5592407)),
    Case("5592407 x 3", (5592407, 3)),
    Case("4096 x 11008, bfloat16", (4096, 11008), dtype=torch.bfloat16),
    Case("8192 x 8192, uint8", (8192, 8192), dtype=torch.uint8),
    Case("2000 x 2001, complex128", (2000, 2001), dtype=torch.complex128),
    Case("NCHW to NHWC, 64x3x256x256", (64, 3, 256, 256), (0, 2, 3, 1)),
    Case("NHWC to NCHW, 64x256x256x3", (64, 256, 256, 3), (0, 3, 1, 2)),
    Case("NHWC to NCHW, uint8", (64, 512, 512, 3), (0, 3, 1, 2), torch.uint8),
    Case("NCHW to NHWC, 16x64x128x128", (16, 64, 128, 128), (0, 2, 3, 1)),
    Case("heads, 8x1024x16x128", (8, 1024, 16, 128), (0, 2, 1, 3)),
    Case("100000 of 13 x 13", (100000, 13, 13), (0, 2, 1)),
    Case("64x64x64x64 reversed", (64, 64, 64, 64), (3, 2, 1, 0)),
]


def sides(case: Case) -> list[Callable[[torch.Tensor], object]]:
    def permuted(flat: torch.Tensor) -> torch.Tensor:
        return flat.view(case.sizes).permute(case.order)

    def ours(flat: torch.Tensor) -> None:
        # Without the look at who else has the storage: the harness has, for the next round.
        x = permuted(flat)
        if _native.module is None or not _native.module.rearrange(x, False):
            raise RuntimeError("no kernels: there is nothing to measure")

    def back(flat: torch.Tensor) -> None:
        flat.copy_(permuted(flat).contiguous().view(-1))

    def away(flat: torch.Tensor) -> object:
        return permuted(flat).contiguous()

    return [ours, back, away]


def measure(case: Case) -> tuple[list[float], str]:
    n = math.prod(case.sizes)
    source = torch.arange(n).remainder_(251).to(case.dtype)
    x = source.clone().view(case.sizes).permute(case.order)
    want = x.contiguous()
    assert torch.equal(ie.contiguous_(x), want) and x.is_contiguous()
    path = testing.last_path()
    return compare(sides(case), source, [source.clone() for _ in range(case.batch)], BUDGET), path


def main() -> int:
    return report(
        str(__doc__),
        [(case.label, partial(measure, case), case.floors) for case in CASES],
        ("and back", "contiguous()"),
    )


if __name__ == "__main__":
    sys.exit(main())
