"""dropout_ beside torch's ``F.dropout(x, p, inplace=True)``, and the twin beside ``F.dropout(x, p)``.

    python benchmarks/dropout.py             # the whole table, one thread
    python benchmarks/dropout.py --check     # in addition, exits with 1 where a floor is missed

Timed as in ops.py. torch draws its noise serially on processors that are not Intel's, and on Intel's by MKL
on all threads: the floor is for the former. The masks differ, so what is checked is that each keeps some
elements and drops others, and makes the same of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import compare, report

import inplace_ext as ie
from inplace_ext import testing

BUDGET = 1.0
Side = Callable[[torch.Tensor], torch.Tensor]


def torch_is_serial() -> bool:
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@dataclass(frozen=True)
class Case:
    """Ours and torch's call on a tensor of a shape, and the least ratio of their times."""

    label: str
    shape: tuple[int, ...]
    ours: Side = lambda x: ie.dropout_(x, 0.5)
    torchs: Side = lambda x: F.dropout(x, 0.5, inplace=True)
    dtype: torch.dtype = torch.float32
    floor: float = 0.0
    batch: int = 1
    transposed: bool = False


SIZES = {"4 Ki": 4 << 10, "1 Mi": 1 << 20, "16 Mi": 16 << 20}
CASES = [
    Case("16 elements", (16,), floor=3.0, batch=1000),
    *(Case(label, (n,), batch=max(1, (1 << 20) // n)) for label, n in SIZES.items() if n < 16 << 20),
    Case("16 Mi", (16 << 20,), floor=12.0 if torch_is_serial() else 0.0),
    Case(
        "16 Mi, p=0.1", (16 << 20,), lambda x: ie.dropout_(x, 0.1), lambda x: F.dropout(x, 0.1, inplace=True)
    ),
    Case("16 Mi, twin", (16 << 20,), lambda x: ie.dropout(x, 0.5), lambda x: F.dropout(x, 0.5)),
    *(
        Case(f"16 Mi, {str(dtype).removeprefix('torch.')}", (16 << 20,), dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
    ),
    Case("4096 x 4096 transposed", (4096, 4096), transposed=True),
    Case(
        "channels of 56 x 56",
        (32, 160, 56, 56),
        lambda x: ie.feature_dropout_(x, 0.5),
        lambda x: torch.feature_dropout_(x, 0.5, True),
    ),
    Case(
        "alpha, 16 Mi",
        (16 << 20,),
        lambda x: ie.alpha_dropout_(x, 0.5),
        lambda x: F.alpha_dropout(x, 0.5, True, True),
    ),
]


def measure(case: Case) -> tuple[list[float], str]:
    """Seconds of ours and of torch's, and the path that ours took."""
    source = torch.ones(case.shape, dtype=case.dtype)
    source = source.t() if case.transposed else source
    results = [side(source.clone()) for side in (case.ours, case.torchs)]
    ours = case.ours(source.clone())
    path = testing.last_path()
    if source.numel() > 1000:
        for result in (*results, ours):
            values, counts = result.unique(return_counts=True)
            assert len(values) == 2 and counts.min() > 0.05 * source.numel(), (values, counts)
        torch.testing.assert_close(results[0].unique(), results[1].unique())
    del ours, results
    batch = [source.clone() for _ in range(case.batch)]
    return compare([case.ours, case.torchs], source, batch, BUDGET), path


if __name__ == "__main__":
    cases = [(case.label, partial(measure, case), (case.floor,)) for case in CASES]
    sys.exit(report(__doc__ or "", cases, ("F.dropout",)))
