"""Views that are not contiguous and operands that broadcast, beside torch on the same tensors.

The percentage of the limit is what a layout costs: its elements a second as a part of those of a scaling
loop over as many contiguous ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work

N = 2048

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """A view of a buffer that is changed, and the operand, if any, made from the view."""

    name: str
    shape: tuple[int, ...]
    view: View
    operand: View | None = None

    def elements(self) -> int:
        return self.view(torch.empty(self.shape, device="meta")).numel()


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def rand(*shape: int) -> View:
    return lambda x: torch.rand(shape, device=x.device).add_(0.5).to(x.dtype)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return rand(*x.shape[::-1])(x).t()


def integers(dtype: torch.dtype) -> View:
    return lambda x: torch.randint(1, 9, x.shape, dtype=dtype, device=x.device)


LAYOUTS = [
    Layout("contiguous", (N, N), same),
    Layout("x.t()", (N, N), lambda x: x.t()),
    Layout("x[1:]", (N * N + 1,), lambda x: x[1:]),
    Layout("x[:, :-1]", (N, N), lambda x: x[:, :-1]),
    Layout("x[::2]", (N, N), lambda x: x[::2]),
    Layout("x[:, ::2]", (N, N), lambda x: x[:, ::2]),
    Layout("x[:, ::3]", (N, N), lambda x: x[:, ::3]),
    Layout("x[:, ::5]", (N, N), lambda x: x[:, ::5]),
    Layout("x[:, ::8]", (N, N), lambda x: x[:, ::8]),
    Layout("x[:, :1000:4]", (N, N), lambda x: x[:, :1000:4]),
    Layout("x[::2, ::2].t()", (N, N), lambda x: x[::2, ::2].t()),
    Layout("rows of 3, gap 1", (1 << 18, 4), lambda x: x[:, :3]),
    Layout("rows of 16, gap 4", (1 << 16, 20), lambda x: x[:, :16]),
    Layout("6 dims, a gap each", (8, 9, 10, 11, 12, 13), lambda x: x[:7, :8, :9, :10, :11, :12]),
    Layout("operand alike", (N, N), same, rand(N, N)),
    Layout("operand (N, 1)", (N, N), same, rand(N, 1)),
    Layout("operand (N,)", (N, N), same, rand(N)),
    Layout("rows of 16, (N, 1)", (1 << 17, 16), same, rand(1 << 17, 1)),
    Layout("4096 of 16, (N, 1)", (1 << 12, 16), same, rand(1 << 12, 1)),
    Layout("4096 of 16, (16,)", (1 << 12, 16), same, rand(16)),
    Layout("rows of 3, (N, 1)", (1 << 19, 3), same, rand(1 << 19, 1)),
    Layout("rows of 48, (N, 1)", (1 << 15, 48), same, rand(1 << 15, 1)),
    Layout("rows of 100, (N, 1)", (1 << 14, 100), same, rand(1 << 14, 1)),
    Layout("rows of 16, (16,)", (1 << 17, 16), same, rand(16)),
    Layout("rows of 3, (3,)", (1 << 19, 3), same, rand(3)),
    Layout("NCHW, (C, 1, 1)", (8, 64, 56, 56), same, rand(64, 1, 1)),
    Layout("NHWC, (C,)", (8, 56, 56, 64), same, rand(64)),
    Layout("NHWC of 3, (3,)", (8, 112, 112, 3), same, rand(3)),
    Layout("operand w.t()", (N, N), same, transposed),
    Layout("operand w[:, ::2]", (N, N), same, lambda x: rand(N, 2 * N)(x)[:, ::2]),
    Layout("operand w[::2]", (N, N), same, lambda x: rand(2 * N, N)(x)[::2]),
    Layout("x[:, ::2], w.t()", (N, N), lambda x: x[:, ::2], lambda x: rand(N // 2, N)(x).t()),
    Layout(
        "5 dims permuted",
        (16, 12, 10, 24, 16),
        same,
        lambda x: rand(16, 24, 10, 16, 12)(x).permute(0, 4, 2, 1, 3),
    ),
    Layout("operand int32", (N, N), same, integers(torch.int32)),
    Layout("operand uint8", (N, N), same, integers(torch.uint8)),
]
#: Layouts that show what more threads bring.
SCALING = ("x.t()", "x[:, ::2]")


def _prepare(layout: Layout, op: str, dtype: torch.dtype, device: str) -> Work:
    x = torch.rand(layout.shape, device=device).add_(0.5).to(dtype)
    view = layout.view(x)
    operand: object = 1.25 if layout.operand is None else layout.operand(view)
    ours, theirs = getattr(ie, op), getattr(torch.Tensor, op)
    moved = view.numel() * x.itemsize * (1 if op == "copy_" else 2)
    if isinstance(operand, torch.Tensor):
        moved += operand.numel() * operand.itemsize
    return Work(
        [Side(OURS, lambda x: ours(x, operand)), Side(TORCH, lambda x: theirs(x, operand))],
        x,
        layout.view,
        moved,
    )


def cases(selection: Selection) -> Iterator[Case]:
    for dtype in selection.dtypes or [torch.float32]:
        for layout in LAYOUTS:
            for op in ("mul_",) if layout.operand is None else ("add_", "copy_"):
                scaled = op == "mul_" and layout.name in SCALING
                yield Case(
                    "layouts", op, op, dtype, layout.elements(),
                    functools.partial(_prepare, layout, op, dtype, selection.device), layout.name,
                    selection.scaling() if scaled else selection.thread_counts, selection.device,
                )  # fmt: skip


SUITE = Suite("layouts", "strided and broadcast tensors beside torch on the same", cases)
