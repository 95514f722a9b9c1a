"""Many tensors in one call: optimizer steps, a chain on a list, and clipping, beside torch's own ways.

``torch`` is the plain way (a loop of calls, or torch's function), ``foreach`` and ``fused`` are torch's
list kernels. The sides hold their own tensors, and each works on them from call to call; the values stay
where they are (clamped, or pulled back by the step), so that none drifts to inf or denormals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import inplace_ext as ie
from benchmarks.case import OURS, TORCH, Case, Selection, Side, Suite, Work
from benchmarks.suites.fuse import three
from examples.optimizers import adamw_, sgd_

FOREACH, FUSED = "foreach", "fused"


def _optimizer(name: str, count: int, size: int, device: str) -> Work:
    """A step of all parameters: ours, and torch's ``fused`` and ``foreach``, each on its own parameters."""
    start = [torch.randn(size, device=device) for _ in range(count)]
    grads = [torch.randn(size, device=device) for _ in range(count)]
    parameters: dict[str, list[torch.Tensor]] = {
        kind: [p.clone().requires_grad_(kind != OURS) for p in start] for kind in (OURS, FUSED, FOREACH)
    }
    buffers = [[torch.zeros(size, device=device) for _ in range(count)] for _ in range(2)]
    steps = 0

    def ours(_: object) -> None:
        nonlocal steps
        steps += 1
        if name == "AdamW":
            adamw_(parameters[OURS], grads, *buffers, steps, 1e-3, 0.9, 0.999, 1e-8, 1e-2)
        else:
            sgd_(parameters[OURS], grads, buffers[0], 1e-3, 0.9, 0.0)

    calls: dict[str, Callable[[Any], object]] = {OURS: ours}
    for kind in (FUSED, FOREACH):
        for p, grad in zip(parameters[kind], grads, strict=True):
            p.grad = grad
        options = {"lr": 1e-3, kind: True} | ({"momentum": 0.9} if name == "SGD" else {})
        optimizer = getattr(torch.optim, name)(parameters[kind], **options)
        calls[kind] = lambda _, optimizer=optimizer: optimizer.step()

    def verify() -> None:
        for call in calls.values():
            call(None)
            call(None)
        for kind in (FUSED, FOREACH):
            for mine, theirs in zip(parameters[OURS], parameters[kind], strict=True):
                torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-5)

    tensors = 4 if name == "AdamW" else 3  # parameter, gradient and state; all but the gradient written
    moved = (2 * tensors - 1) * 4 * count * size
    return Work([Side(kind, call) for kind, call in calls.items()], moved=moved, verify=verify)


def _chain(count: int, size: int, device: str) -> Work:
    """Three operations on many tensors: ours, a loop of eager calls, and ``torch._foreach_*``."""
    start = [torch.randn(size, device=device) for _ in range(count)]
    mine, eager, listed = ([x.clone() for x in start] for _ in range(3))
    fused = ie.fuse(three)

    def loop(_: object) -> None:
        for x in eager:
            three(x)

    def foreach(_: object) -> None:
        torch._foreach_sub_(listed, 0.1)
        torch._foreach_mul_(listed, 1.1)
        torch._foreach_clamp_min_(listed, -3)
        torch._foreach_clamp_max_(listed, 3)

    sides = [Side(OURS, lambda _: fused(mine)), Side(TORCH, loop), Side(FOREACH, foreach)]

    def verify() -> None:
        for side in sides:
            side.call(None)
        torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(listed, eager, rtol=1e-5, atol=1e-6)

    return Work(sides, moved=2 * 4 * count * size, verify=verify)


def _clipping(name: str, count: int, size: int, device: str) -> Work:
    """The gradients of many parameters clipped, on a bound that leaves them: ours, and torch's both ways."""
    gradients = [torch.randn(size, device=device) for _ in range(count)]

    def parameters() -> list[torch.Tensor]:
        made = [torch.zeros(size, device=device, requires_grad=True) for _ in range(count)]
        for p, grad in zip(made, gradients, strict=True):
            p.grad = grad.clone()
        return made

    ours, torchs = getattr(ie, name), getattr(torch.nn.utils, name)
    calls = {
        OURS: ours,
        TORCH: functools.partial(torchs, foreach=False),
        FOREACH: functools.partial(torchs, foreach=True),
    }

    def side(kind: str) -> Side:
        held, call = parameters(), calls[kind]
        return Side(kind, lambda _: call(held, 1e3))

    def verify() -> None:
        clipped = []
        for call in calls.values():
            held = parameters()
            call(held, 0.5)
            clipped.append([p.grad for p in held])
        for others in clipped[1:]:
            torch.testing.assert_close(clipped[0], others)

    sides = [side(kind) for kind in calls]
    return Work(sides, moved=(3 if name == "clip_grad_norm_" else 2) * 4 * count * size, verify=verify)


def cases(selection: Selection) -> Iterator[Case]:
    quick = selection.quick
    few, large = 16, 64 << 10 if quick else 1 << 20
    many, small = 500 if quick else 2000, 64
    device = selection.device
    made: list[tuple[str, str, int, int, Callable[[], Work]]] = [
        ("SGD, momentum", "fuse", few, large, functools.partial(_optimizer, "SGD", few, large, device)),
        ("AdamW", "fuse", few, large, functools.partial(_optimizer, "AdamW", few, large, device)),
        ("chain of 3", "fuse", many, small, functools.partial(_chain, many, small, device)),
    ]
    made += [
        (name, name, many, small, functools.partial(_clipping, name, many, small, device))
        for name in ("clip_grad_norm_", "clip_grad_value_")
    ]
    for name, op, count, size, work in made:
        yield Case(
            "lists", name, op, torch.float32, count * size, work,
            f"{count} tensors of {size}", selection.thread_counts, device,
        )  # fmt: skip


SUITE = Suite("lists", "optimizer steps, chains and clipping on lists of tensors beside torch's", cases)
