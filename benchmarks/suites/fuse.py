"""Fused chains beside the same calls one by one, beside Inductor, numexpr and NumPy.

``torch`` is the function as it is written, run call by call; the limit is one pass over the tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import inplace_ext as ie
from benchmarks.case import (
    OURS,
    TORCH,
    Case,
    Selection,
    Side,
    Suite,
    Work,
    array_sides,
    close,
    compiled,
    optional,
)

np = optional("numpy")

LARGE = 16 << 20
IMAGES = (64, 3, 256, 256)


def one(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1)


def two(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1).mul_(1.1)


def three(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1).mul_(1.1).clamp_(-3, 3)


def six(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1).mul_(1.1).clamp_(-3, 3).add_(0.1).neg_().mul_(-0.9)


def nine(x: torch.Tensor) -> torch.Tensor:
    return three(six(x))


def twelve(x: torch.Tensor) -> torch.Tensor:
    return six(six(x))


CHAINS = {1: one, 2: two, 3: three, 6: six, 9: nine, 12: twelve}

#: The six operations of a chain once more, for arrays: in NumPy, and as numexpr's expression of the last.
#: numexpr's own minimum and maximum know float64 alone.
_CLAMP = "where({0} < low, low, where({0} > high, high, {0}))"
_CONSTANTS = {"a": 0.1, "b": 1.1, "low": -3.0, "high": 3.0, "c": -0.9}
_EXPRESSIONS = ("({} - a)", "({} * b)", _CLAMP, "({} + a)", "(-{})", "({} * c)")


def _numpy_chain(n: int) -> Callable[[Any], object]:
    steps = [
        lambda x: np.subtract(x, 0.1, out=x),
        lambda x: np.multiply(x, 1.1, out=x),
        lambda x: np.clip(x, -3, 3, out=x),
        lambda x: np.add(x, 0.1, out=x),
        lambda x: np.negative(x, out=x),
        lambda x: np.multiply(x, -0.9, out=x),
    ]

    def chain(x: Any) -> None:
        for i in range(n):
            steps[i % 6](x)

    return chain


def _numexpr_chain(n: int) -> str:
    expression = "x"
    for i in range(n):
        expression = _EXPRESSIONS[i % 6].format(expression)
    return expression


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return x.neg_().exp_().add_(1).reciprocal_()


def per_channel(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return x.sub_(mean).div_(std).clamp_(-3, 3)


def from_bytes(x: torch.Tensor, images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return x.copy_(images).sub_(mean).div_(std)


def _chain(n: int, dtype: torch.dtype, size: int, device: str, compile_too: bool) -> Work:
    function = CHAINS[n]
    x = torch.randn(size, device=device).to(dtype)
    sides = [
        Side(OURS, ie.fuse(function)),
        Side(TORCH, function),
        compiled(function, on_request=not compile_too),
    ]
    if device == "cpu":
        numpy = None if np is None else _numpy_chain(n)
        sides += array_sides(dtype, (), numpy, _numexpr_chain(n), _CONSTANTS)
    # One rounding at the end instead of one after each operation.
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}.get(dtype, 6e-2)
    return Work(sides, x, moved=2 * x.nbytes, check=close(tolerance))


def chain_case(
    n: int,
    dtype: torch.dtype,
    size: int,
    selection: Selection,
    suite: str = "fuse",
    compile_too: bool = False,
) -> Case:
    work = functools.partial(_chain, n, dtype, size, selection.device, compile_too)
    return Case(
        suite, f"chain of {n}", "fuse", dtype, size, work,
        threads=selection.thread_counts, device=selection.device,
    )  # fmt: skip


@dataclass(frozen=True)
class Formula:
    """A function with operands of its own, on tensors of a shape."""

    name: str
    function: Callable[..., torch.Tensor]
    shape: tuple[int, ...]
    operands: Callable[[tuple[int, ...], str], tuple[torch.Tensor, ...]] = lambda shape, device: ()
    numexpr: str | None = None
    #: Whether the values before the call are read.
    reads: bool = True

    def prepare(self, dtype: torch.dtype, device: str) -> Work:
        x = torch.randn(self.shape, device=device).to(dtype)
        operands = self.operands(self.shape, device)
        function = functools.partial(self.function, **dict(zip(self._names(), operands, strict=True)))
        fused = ie.fuse(self.function)
        call = (lambda x: fused(x, *operands)) if operands else fused
        sides = [Side(OURS, call), Side(TORCH, function), compiled(function)]
        if device == "cpu":
            constants = {"low": -3.0, "high": 3.0}
            sides += array_sides(dtype, operands, None, self.numexpr, constants)
        moved = x.nbytes * (2 if self.reads else 1) + sum(o.nbytes for o in operands)
        return Work(sides, x, moved=moved, check=close(1e-5 if dtype == torch.float32 else None))

    def _names(self) -> list[str]:
        return list(self.function.__annotations__)[1:-1]


def _mean_and_std(shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, ...]:
    channels = (shape[1], 1, 1)
    return torch.rand(channels, device=device), torch.rand(channels, device=device) + 0.5


def _bytes_mean_and_std(shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, ...]:
    return (
        torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        *_mean_and_std(shape, device),
    )


def formulas(images: tuple[int, ...], size: int) -> list[Formula]:
    return [
        Formula("per channel", per_channel, images, _mean_and_std, _CLAMP.format("((x - a) / b)")),
        Formula("uint8 to normalised floats", from_bytes, images, _bytes_mean_and_std, reads=False),
        Formula("sigmoid written out", sigmoid, (size,), numexpr="1 / (1 + exp(-x))"),
    ]


def cases(selection: Selection) -> Iterator[Case]:
    quick = selection.quick
    sizes = selection.sizes or ([1 << 20] if quick else [16, 4 << 10, 1 << 20, LARGE])
    for dtype in selection.dtypes or [torch.float32]:
        for size in sizes:
            every = selection.sizes or size == LARGE
            for n in CHAINS if every else (1, 3, 6) if quick else (3,):
                yield chain_case(n, dtype, size, selection, compile_too=not quick)
        if dtype == torch.float32:
            images = (8, *IMAGES[1:]) if quick else IMAGES
            for formula in formulas(images, sizes[-1]):
                layout = "contiguous" if len(formula.shape) == 1 else " x ".join(map(str, formula.shape))
                work = functools.partial(formula.prepare, dtype, selection.device)
                yield Case(
                    "fuse", formula.name, "fuse", dtype, math.prod(formula.shape), work,
                    layout, selection.thread_counts, selection.device,
                )  # fmt: skip


SUITE = Suite("fuse", "chains in one pass beside torch call by call, Inductor, NumPy and numexpr", cases)
