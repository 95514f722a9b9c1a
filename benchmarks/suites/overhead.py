"""What a call costs: small tensors, on which the work itself takes next to no time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.case import Case, Selection, Suite
from benchmarks.suites import dropout, fuse, ops, softmax

SIZES = [1, 16, 256, 4 << 10]
LINES = ("mul_ number", "add_ tensor", "clamp_ numbers", "exp_")


def cases(selection: Selection) -> Iterator[Case]:
    quick = selection.quick
    lines = [line for line in ops.LINES if line.name in LINES]
    for size in selection.sizes or ([16] if quick else SIZES):
        for dtype in selection.dtypes or [torch.float32]:
            for line in lines:
                compile_too = not quick and size == 16
                yield ops.line_case(line, dtype, size, selection, "overhead", compile_too=compile_too)
            yield fuse.chain_case(3, dtype, size, selection, "overhead", compile_too=not quick and size == 16)
            yield softmax.row_case((size,), dtype, selection, "overhead")
            yield dropout.drop_case((size,), dtype, selection, "overhead")


SUITE = Suite("overhead", "what a call costs, on small tensors", cases)
