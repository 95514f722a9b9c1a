"""The operations at random beside torch's functions of the same name.

torch draws its noise serially on processors that are not Intel's, and on Intel's on all threads. The masks
differ, so what is checked is that each side keeps some elements, drops others, and makes the same of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work, compiled

LARGE = 16 << 20
IMAGES = (32, 160, 56, 56)
DTYPES = [torch.bfloat16, torch.float16, torch.float64]

_TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "dropout": lambda x, p, inplace: F.dropout(x, p, inplace=inplace),
    "feature_dropout": lambda x, p, inplace: (torch.feature_dropout_ if inplace else torch.feature_dropout)(
        x, p, True
    ),
    "alpha_dropout": lambda x, p, inplace: F.alpha_dropout(x, p, True, inplace),
    "feature_alpha_dropout": lambda x, p, inplace: F.feature_alpha_dropout(x, p, True, inplace),
}


def _check(p: float) -> Callable[[str, torch.Tensor, torch.Tensor], None]:
    def check(provider: str, got: torch.Tensor, want: torch.Tensor) -> None:
        if want.numel() < 1000:
            return
        ends, wanted = got.aminmax(), want.aminmax()
        counts = [int((got == end).sum()) for end in ends]
        if sum(counts) != got.numel() or min(counts) < 0.5 * min(p, 1 - p) * got.numel():
            raise AssertionError(f"{provider}: not two values, each often enough: {ends}, {counts}")
        torch.testing.assert_close(tuple(ends), tuple(wanted))

    return check


def _prepare(
    op: str,
    shape: tuple[int, ...],
    p: float,
    dtype: torch.dtype,
    device: str,
    transposed: bool,
    compile_too: bool,
) -> Work:
    x = torch.ones(shape, dtype=dtype, device=device)
    ours, theirs = getattr(ie, op), _TORCH[op.removesuffix("_")]
    inplace = op.endswith("_")
    sides = [
        Side(OURS, lambda x: ours(x, p)),
        Side(TORCH, lambda x: theirs(x, p, inplace)),
        compiled(lambda x: theirs(x, p, inplace), on_request=not compile_too),
    ]
    work = Work(sides, x, moved=2 * x.nbytes, check=_check(p))
    if transposed:
        work.view = torch.t
    return work


def drop_case(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    selection: Selection,
    suite: str = "dropout",
    op: str = "dropout_",
    p: float = 0.5,
    transposed: bool = False,
    compile_too: bool = False,
) -> Case:
    name = op if p == 0.5 else f"{op} p={p}"
    layout = "contiguous" if len(shape) == 1 else " x ".join(map(str, shape)) + ".t()" * transposed
    work = functools.partial(_prepare, op, shape, p, dtype, selection.device, transposed, compile_too)
    return Case(
        suite, name, op, dtype, math.prod(shape), work, layout, selection.thread_counts, selection.device
    )


def cases(selection: Selection) -> Iterator[Case]:
    quick = selection.quick
    sizes = selection.sizes or ([1 << 20] if quick else [4 << 10, 1 << 20, LARGE])
    for dtype in selection.dtypes or [torch.float32]:
        for size in sizes:
            yield drop_case((size,), dtype, selection, compile_too=size == LARGE)
        yield drop_case((sizes[-1],), dtype, selection, p=0.1)
        for op in ("dropout", "alpha_dropout_", "alpha_dropout"):
            yield drop_case((sizes[-1],), dtype, selection, op=op)
        images = (4, *IMAGES[1:]) if quick else IMAGES
        for op in ("feature_dropout_", "feature_dropout", "feature_alpha_dropout_", "feature_alpha_dropout"):
            yield drop_case(images, dtype, selection, op=op)
        side = 1024 if quick else 4096
        yield drop_case((side, side), dtype, selection, transposed=True)
    if not selection.dtypes and not quick:
        for dtype in DTYPES:
            yield drop_case((sizes[-1],), dtype, selection)


SUITE = Suite("dropout", "dropout_ and its family beside torch's", cases)
