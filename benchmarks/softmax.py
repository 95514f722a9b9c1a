"""softmax_relu_ beside what torch has for it: ``relu_(softmax(x))``, and ``softmax(x, out=ready)`` alone.

    python benchmarks/softmax.py             # the whole table, one thread
    python benchmarks/softmax.py --check     # in addition, exits with 1 where a floor is missed

Timed as in ops.py. The second ratio is to the work of torch that needs no allocation, and that is without the
relu: what is left of the gain for one who keeps a buffer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from harness import compare, report

import inplace_ext as ie
from inplace_ext import testing

BUDGET = 1.0


@dataclass(frozen=True)
class Case:
    """A tensor, the dim, and the least ratios to relu_(softmax(x)) and to softmax(x, out=ready)."""

    label: str
    shape: tuple[int, ...]
    dim: int = -1
    dtype: torch.dtype = torch.float32
    floors: tuple[float, float] = (0.0, 0.0)
    batch: int = 1


ELEMENTS = 16 << 20
CASES = [
    Case("16 elements", (16,), floors=(3.0, 0.0), batch=1000),
    *(
        Case(f"rows of {n}", (ELEMENTS // n, n), floors=(3.0, 1.4))
        for n in (64, 256, 1024, 4096, 16384, 65536)
    ),
    Case("one row", (ELEMENTS,)),
    Case("dim 0 of 1024 x 16384", (1024, 16384), 0, floors=(5.0, 0.0)),
    Case("dim 0 of 16384 x 1024", (16384, 1024), 0),
    Case("bfloat16, rows of 1024", (ELEMENTS // 1024, 1024), dtype=torch.bfloat16, floors=(2.0, 0.0)),
    Case("float16, rows of 1024", (ELEMENTS // 1024, 1024), dtype=torch.float16),
    Case("float64, rows of 1024", (ELEMENTS // 1024, 1024), dtype=torch.float64),
]


def measure(case: Case) -> tuple[list[float], str]:
    """Seconds of ours, of relu_(softmax(x)) and of softmax(x, out=ready), and the path that ours took."""
    source = torch.randn(case.shape).mul_(2).to(case.dtype)
    ready = torch.empty_like(source)
    ours = ie.softmax_relu_(source.clone(), case.dim)
    path = testing.last_path()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}.get(case.dtype, 1e-2)
    torch.testing.assert_close(ours, torch.softmax(source, case.dim), rtol=tolerance, atol=1e-6)
    del ours
    times = compare(
        [
            lambda x: ie.softmax_relu_(x, case.dim),
            lambda x: F.relu_(torch.softmax(x, case.dim)),
            lambda x: torch.softmax(x, case.dim, out=ready),
        ],
        source,
        [source.clone() for _ in range(case.batch)],
        BUDGET,
    )
    return times, path


if __name__ == "__main__":
    sys.exit(
        report(
            __doc__ or "",
            [(case.label, partial(measure, case), case.floors) for case in CASES],
            ("relu_(softmax)", "softmax(out=)"),
        )
    )
