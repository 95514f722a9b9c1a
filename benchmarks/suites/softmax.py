"""The operations along a dim beside what torch has for them.

``torch`` is what gives the same values, and ``torch_out`` torch's work alone that needs no allocation
(``softmax(x, out=ready)``, without the relu): what is left of the gain for one who keeps a buffer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work, close, compiled

TORCH_OUT = "torch_out"
ELEMENTS = 16 << 20
ROWS = (64, 256, 1024, 4096, 16384, 65536)

_TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "softmax_relu": lambda x, dim: F.relu_(torch.softmax(x, dim)),
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}


def _prepare(
    op: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str, compile_too: bool
) -> Work:
    x = torch.randn(shape, device=device).mul_(2).to(dtype)
    ready = torch.empty_like(x)
    ours, theirs = getattr(ie, op), _TORCH[op.removesuffix("_")]
    out = torch.log_softmax if op.startswith("log_") else torch.softmax
    sides = [
        Side(OURS, lambda x: ours(x, dim)),
        Side(TORCH, lambda x: theirs(x, dim)),
        Side(TORCH_OUT, lambda x: out(x, dim, out=ready)),
        compiled(lambda x: theirs(x, dim), on_request=not compile_too),
    ]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 1e-2)
    return Work(sides, x, moved=2 * x.nbytes, check=close(tolerance))


def row_case(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    selection: Selection,
    suite: str = "softmax",
    op: str = "softmax_relu_",
    dim: int = -1,
    compile_too: bool = False,
) -> Case:
    if len(shape) == 1:
        layout = "contiguous"
    else:
        layout = f"rows of {shape[-1]}" if dim == -1 else f"dim {dim} of {shape[0]} x {shape[1]}"
    work = functools.partial(_prepare, op, shape, dim, dtype, selection.device, compile_too)
    return Case(
        suite, op, op, dtype, math.prod(shape), work, layout, selection.thread_counts, selection.device
    )


def cases(selection: Selection) -> Iterator[Case]:
    quick = selection.quick
    elements = (selection.sizes or [1 << 20 if quick else ELEMENTS])[0]
    for dtype in selection.dtypes or [torch.float32]:
        for n in (64, 1024) if quick else ROWS:
            if elements >= n:
                shape = (elements // n, n)
                yield row_case(shape, dtype, selection, compile_too=n == 1024 and not quick)
        yield row_case((elements,), dtype, selection)
        for shape in (
            ((1024, elements // 1024),) if quick else ((1024, elements // 1024), (16384, elements // 16384))
        ):
            if min(shape) > 0:
                yield row_case(shape, dtype, selection, dim=0)
        if elements >= 1024:
            for op in ("softmax_", "log_softmax_", "softmax_relu", "softmax", "log_softmax"):
                yield row_case((elements // 1024, 1024), dtype, selection, op=op)
    if not selection.dtypes and not quick and elements >= 1024:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            yield row_case((elements // 1024, 1024), dtype, selection)


SUITE = Suite("softmax", "softmax_relu_ and its family beside torch's softmax", cases)
