"""``contiguous_`` beside what torch has for it: ``x.contiguous()``, and a copy of that back into the storage.

``torch`` is the copy and back; ``torch_out`` is ``x.contiguous()`` alone, which needs a second storage of the
same size and leaves the first as it was.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work
from benchmarks.suites.softmax import TORCH_OUT
from inplace_ext import _native


@dataclass(frozen=True)
class Line:
    """Sizes as they lie in memory, and the order that is asked for."""

    layout: str
    sizes: tuple[int, ...]
    order: tuple[int, ...] = (1, 0)
    dtype: torch.dtype = torch.float32
    quick: bool = False


LINES = [
    Line("64 x 64", (64, 64)),
    Line("500 x 300", (500, 300)),
    Line("1024 x 1024", (1024, 1024), quick=True),
    Line("4096 x 4096", (4096, 4096)),
    Line("5000 x 3001", (5000, 3001)),
    Line("3001 x 5000", (3001, 5000)),
    Line("4099 x 4093", (4099, 4093)),
    Line("4096 x 14336", (4096, 14336)),
    Line("3 x 5592407", (3, 5592407)),
    Line("5592407 x 3", (5592407, 3)),
    Line("4096 x 11008", (4096, 11008), dtype=torch.bfloat16),
    Line("8192 x 8192", (8192, 8192), dtype=torch.uint8),
    Line("2000 x 2001", (2000, 2001), dtype=torch.complex128),
    Line("NCHW to NHWC, 64 x 3 x 256 x 256", (64, 3, 256, 256), (0, 2, 3, 1)),
    Line("NHWC to NCHW, 64 x 256 x 256 x 3", (64, 256, 256, 3), (0, 3, 1, 2)),
    Line("NHWC to NCHW, 64 x 512 x 512 x 3", (64, 512, 512, 3), (0, 3, 1, 2), torch.uint8),
    Line("NCHW to NHWC, 16 x 64 x 128 x 128", (16, 64, 128, 128), (0, 2, 3, 1)),
    Line("heads, 8 x 1024 x 16 x 128", (8, 1024, 16, 128), (0, 2, 1, 3)),
    Line("100000 of 13 x 13", (100000, 13, 13), (0, 2, 1)),
    Line("64 x 64 x 64 x 64 reversed", (64, 64, 64, 64), (3, 2, 1, 0)),
]


def _prepare(line: Line, device: str) -> Work:
    source = torch.arange(math.prod(line.sizes), device=device).remainder_(251).to(line.dtype)

    def permuted(flat: torch.Tensor) -> torch.Tensor:
        return flat.view(line.sizes).permute(line.order)

    def ours(flat: torch.Tensor) -> None:
        # Without the look at who else has the storage: the harness has, for the next round.
        x = permuted(flat)
        if device != "cpu" or _native.module is None:
            ie.contiguous_(x)
        elif not _native.module.rearrange(x, False):
            raise RuntimeError(f"contiguous_: no kernel for {line.layout}")

    def back(flat: torch.Tensor) -> None:
        flat.copy_(permuted(flat).contiguous().view(-1))

    sides = [
        Side(OURS, ours),
        Side(TORCH, back),
        Side(TORCH_OUT, lambda flat: permuted(flat).contiguous().view(-1)),
    ]
    return Work(sides, source, moved=2 * source.nbytes)


#: Operations that change sizes and strides alone, as calls that can be made again and again.
CALLS: dict[str, tuple[Callable[[torch.Tensor], object], Callable[[torch.Tensor], object]]] = {
    "transpose_": (lambda x: ie.transpose_(x, 0, 1), lambda x: x.transpose_(0, 1)),
    "t_": (ie.t_, torch.Tensor.t_),
    "squeeze_": (lambda x: ie.squeeze_(x, 0), lambda x: x.squeeze_(0)),
    "unsqueeze_": (
        lambda x: ie.squeeze_(ie.unsqueeze_(x, 0), 0),
        lambda x: x.unsqueeze_(0).squeeze_(0),
    ),
    "as_strided_": (
        lambda x: ie.as_strided_(x, (64, 64), (64, 1)),
        lambda x: x.as_strided_((64, 64), (64, 1)),
    ),
    "resize_": (lambda x: ie.resize_(x, 64, 64), lambda x: x.resize_(64, 64)),
    # torch has these as views alone, which are other objects.
    "view_": (lambda x: ie.view_(x, 64, 64), lambda x: x.view(64, 64)),
    "reshape_": (lambda x: ie.reshape_(x, 64, 64), lambda x: x.reshape(64, 64)),
}


def _prepare_call(name: str, device: str) -> Work:
    made = {provider: torch.arange(4096, device=device).view(64, 64).clone() for provider in (OURS, TORCH)}
    calls = dict(zip((OURS, TORCH), CALLS[name], strict=True))

    def verify() -> None:
        results = [calls[provider](x) for provider, x in made.items()]
        torch.testing.assert_close(*results)
        for provider, x in made.items():  # once more, so that each is as it was
            calls[provider](x)
        torch.testing.assert_close(*made.values())

    return Work([Side(p, lambda _, p=p: calls[p](made[p])) for p in made], verify=verify)


def cases(selection: Selection) -> Iterator[Case]:
    for name in CALLS:
        work = functools.partial(_prepare_call, name, selection.device)
        yield Case(
            "rearrange", name, name, torch.int64, 4096, work,
            "nothing moves", selection.thread_counts, selection.device,
        )  # fmt: skip
    for line in LINES:
        if line.quick or not selection.quick:
            work = functools.partial(_prepare, line, selection.device)
            yield Case(
                "rearrange", "contiguous_", "contiguous_", line.dtype, math.prod(line.sizes), work,
                line.layout, selection.thread_counts, selection.device,
            )  # fmt: skip


SUITE = Suite("rearrange", "contiguous_ beside x.contiguous(), with and without the copy back", cases)
