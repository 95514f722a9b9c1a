"""Fused chains beside the same calls one by one, beside Inductor, and beside one in-place scaling.

    python benchmarks/fuse.py                # the whole table, one thread
    python benchmarks/fuse.py --no-inductor  # without torch.compile, which takes seconds a case
    python benchmarks/fuse.py --check        # in addition, exits with 1 where a floor is missed

Timed as in ops.py. The scaling, ``ie.mul_``, reads and writes the tensor once: what a pass over memory costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from harness import compare, report

import inplace_ext as ie
from inplace_ext import testing

BUDGET = 0.7
INDUCTOR = "--no-inductor" not in sys.argv
if not INDUCTOR:
    sys.argv.remove("--no-inductor")


def three(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1).mul_(1.1).clamp_(-3, 3)


def six(x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.1).mul_(1.1).clamp_(-3, 3).add_(0.1).neg_().mul_(-0.9)


def nine(x: torch.Tensor) -> torch.Tensor:
    return three(six(x))


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return x.neg_().exp_().add_(1).reciprocal_()


MEAN, STD = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
IMAGES = torch.randint(0, 256, (64, 3, 256, 256), dtype=torch.uint8)


def per_channel(x: torch.Tensor, mean: torch.Tensor = MEAN, std: torch.Tensor = STD) -> torch.Tensor:
    return x.sub_(mean).div_(std).clamp_(-3, 3)


def from_bytes(
    x: torch.Tensor, images: torch.Tensor = IMAGES, mean: torch.Tensor = MEAN, std: torch.Tensor = STD
) -> torch.Tensor:
    return x.copy_(images).sub_(mean).div_(std)


def sgd(
    p: torch.Tensor, grad: torch.Tensor, buf: torch.Tensor, lr: float = 1e-3, momentum: float = 0.9
) -> None:
    buf.mul_(momentum).add_(grad)
    p.add_(buf, alpha=-lr)


def adamw(
    p: torch.Tensor, grad: torch.Tensor, m: torch.Tensor, v: torch.Tensor, step: int, lr: float = 1e-3
) -> None:
    p.mul_(1 - lr * 0.01)
    m.lerp_(grad, 1 - 0.9)
    v.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
    root = (1 - 0.999**step) ** 0.5
    p.addcdiv_(m, v.sqrt().div_(root).add_(1e-8), value=-lr / (1 - 0.9**step))


@dataclass(frozen=True)
class Case:
    """A function of one tensor, and the least ratios to eager, Inductor and the scaling."""

    label: str
    function: Callable[..., Any]
    shape: tuple[int, ...]
    floors: tuple[float, float, float] = (0.0, 0.0, 0.0)
    batch: int = 1
    extra: dict[str, Any] = field(default_factory=dict)


LARGE = (16 << 20,)
CASES = [
    Case("3 ops, 16 elements", three, (16,), (5.0, 20.0, 0.0), 1000),
    Case("3 ops, 4 Ki", three, (4096,), batch=200),
    Case("3 ops, 1 Mi", three, (1 << 20,), batch=4),
    Case("3 ops, 16 Mi", three, LARGE, (1.9, 0.9, 0.67)),
    Case("6 ops, 16 Mi", six, LARGE, (3.5, 0.0, 0.0)),
    Case("9 ops, 16 Mi", nine, LARGE, (5.0, 0.0, 0.0)),
    Case("per channel, 64x3x256x256", per_channel, (64, 3, 256, 256), (1.8, 0.0, 0.0)),
    Case("uint8 to normalised floats", from_bytes, (64, 3, 256, 256), (2.5, 0.0, 0.0)),
    Case("sigmoid written out, 16 Mi", sigmoid, LARGE, (2.5, 1.2, 0.0)),
]


def measure(case: Case) -> tuple[list[float], str]:
    """Seconds of ours, eager, Inductor and the scaling, and the path that ours took."""
    source = torch.randn(case.shape)
    fused = ie.fuse(case.function)
    ours, want = fused(source.clone()), case.function(source.clone())
    path = testing.last_path()
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()
    inductor = torch.compile(case.function) if INDUCTOR else case.function
    torch.testing.assert_close(inductor(source.clone()), want, rtol=1e-5, atol=1e-6)
    del ours, want
    sides = [fused, case.function, inductor, lambda x: ie.mul_(x, 1.0001)]
    return compare(sides, source, [source.clone() for _ in range(case.batch)], BUDGET), path


def optimizer(name: str, count: int = 16, size: int = 1 << 20) -> tuple[list[float], str]:
    """A step of all parameters: ours, and torch's ``fused`` and ``foreach``."""
    state: dict[str, Any] = {"step": 1}
    step = ie.fuse(adamw if name == "AdamW" else sgd)
    sides: list[Callable[[torch.Tensor], object]] = []
    p, g = ([torch.randn(size) for _ in range(count)] for _ in range(2))
    buffers = [[torch.zeros(size) for _ in range(count)] for _ in range(2)]

    def ours(_: torch.Tensor) -> None:
        state["step"] += 1
        if name == "AdamW":
            step(p, g, *buffers, state["step"])
        else:
            step(p, g, buffers[0])

    sides.append(ours)
    for kind in ("fused", "foreach"):
        parameters = [torch.randn(size, requires_grad=True) for _ in range(count)]
        for q, grad in zip(parameters, g, strict=True):
            q.grad = grad
        options = {"lr": 1e-3, kind: True} | ({"momentum": 0.9} if name == "SGD" else {})
        torchs = getattr(torch.optim, name)(parameters, **options)
        sides.append(lambda _, torchs=torchs: torchs.step())
    dummy = torch.zeros(1)
    ours(dummy)
    path = testing.last_path()
    times = compare(sides, dummy, [dummy.clone()], BUDGET)
    return times, path


def lists(count: int = 2000, size: int = 64) -> tuple[list[float], str]:
    """Three operations on many small tensors: ours, a loop of eager calls, and ``torch._foreach_*``."""
    xs = [torch.randn(size) for _ in range(count)]
    fused = ie.fuse(three)
    fused(xs)
    path = testing.last_path()

    def loop(_: torch.Tensor) -> None:
        for x in xs:
            three(x)

    def foreach(_: torch.Tensor) -> None:
        torch._foreach_sub_(xs, 0.1)
        torch._foreach_mul_(xs, 1.1)
        torch._foreach_clamp_min_(xs, -3)
        torch._foreach_clamp_max_(xs, 3)

    dummy = torch.zeros(1)
    return compare([lambda _: fused(xs), loop, foreach], dummy, [dummy], BUDGET), path


def clipping(name: str, count: int = 2000, size: int = 64) -> tuple[list[float], str]:
    """The gradients of many small parameters clipped: ours and torch's."""
    parameters = [torch.zeros(size, requires_grad=True) for _ in range(count)]
    for p in parameters:
        p.grad = torch.randn(size)
    ours, theirs = getattr(ie, name), getattr(torch.nn.utils, name)
    ours(parameters, 1e3)
    path = testing.last_path()
    dummy = torch.zeros(1)
    sides = [lambda _: ours(parameters, 1e3), lambda _: theirs(parameters, 1e3)]
    return compare(sides, dummy, [dummy], BUDGET), path


if __name__ == "__main__":
    table = [(case.label, partial(measure, case), case.floors) for case in CASES]
    status = report(__doc__ or "", table, ("eager", "inductor" if INDUCTOR else "(eager)", "scaling"))
    print()
    steps = [
        ("SGD, momentum, 16 x 1 Mi", partial(optimizer, "SGD"), (0.95, 1.5)),
        ("AdamW, 16 x 1 Mi", partial(optimizer, "AdamW"), (0.95, 4.0)),
    ]
    status = max(status, report(__doc__ or "", steps, ("fused=True", "foreach=True")))
    print()
    many = [("3 ops, 2000 tensors of 64", lists, (20.0, 10.0))]
    status = max(status, report(__doc__ or "", many, ("eager", "foreach")))
    print()
    floors = {"clip_grad_norm_": 8.0, "clip_grad_value_": 5.0}
    clips = [(f"{name}, 2000 x 64", partial(clipping, name), (floor,)) for name, floor in floors.items()]
    sys.exit(max(status, report(__doc__ or "", clips, ("torch",))))
