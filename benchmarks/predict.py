"""Predicts, from the memory that the kernels move on the emulated device, the time of calls on real ones.

A PREDICTION, NOT A MEASUREMENT: no GPU takes part. The emulation (tests/emulate) counts the 32-byte sectors
that the kernels of csrc/cuda read and write, and those are divided by the card's bandwidth. A launch takes
some microseconds besides, no card reaches the whole of its bandwidth, caches keep what was there before, and
where arithmetic takes longer than memory (long chains, double precision on consumer cards) it decides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

import inplace_ext as ie
from benchmarks import machine
from benchmarks.case import format_size

#: Memory bandwidth in GB/s, from the makers' data sheets.
CARDS = {"T4": 320, "A100 80 GB": 2039, "H100 SXM": 3350, "RTX 4090": 1008, "RTX 5090": 1792, "B200": 8000}


def calls(n: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Calls on n elements, each with the bytes that it must move."""
    rows = torch.randn(max(n // 1024, 1), min(n, 1024))
    half, flat, other = rows.bfloat16(), rows.view(-1).clone(), torch.randn(rows.numel())
    long = torch.randn(max(n // 65536, 1), min(n, 65536))
    grad, first, second = (torch.rand(rows.numel()) for _ in range(3))
    f32, bf16 = 4 * rows.numel(), 2 * rows.numel()

    @ie.fuse
    def normalize_(x, y):  # type: ignore[no-untyped-def]
        return x.sub_(y).div_(2.0).clamp_(-1, 1)

    @ie.fuse
    def adam_(p, grad, first, second):  # type: ignore[no-untyped-def]
        first.mul_(0.9).add_(grad, alpha=0.1)
        second.mul_(0.99).addcmul_(grad, grad, value=0.01)
        p.addcdiv_(first, second.sqrt().add_(1e-8), value=-0.1)

    return {
        "x.mul_(2)": (lambda: ie.mul_(flat, 2), 2 * f32),
        "x.add_(y)": (lambda: ie.add_(flat, other), 3 * f32),
        "x.exp_(), bfloat16": (lambda: ie.exp_(half), 2 * bf16),
        "x.sub_(y).div_(2).clamp_(-1, 1)": (lambda: normalize_(flat, other), 3 * f32),
        "a step of Adam": (lambda: adam_(flat, grad, first, second), 7 * f32),
        "softmax_, rows of 1024": (lambda: ie.softmax_(rows, -1), 2 * f32),
        "softmax_, rows of 1024, bfloat16": (lambda: ie.softmax_(half, -1), 2 * bf16),
        "softmax_, rows of 65536": (
            lambda: ie.softmax_(long, -1),
            8 * long.numel(),
        ),
        "softmax_ along dim 0": (lambda: ie.softmax_(rows, 0), 2 * f32),
        "dropout_(p=0.5)": (lambda: ie.dropout_(flat, 0.5, seed=1), 2 * f32),
    }


@dataclass(frozen=True)
class Prediction:
    """What a call moves, beside the least that it must, and its microseconds on each card."""

    call: str
    moved: int
    least: int

    def microseconds(self, card: str) -> float:
        return self.moved / CARDS[card] / 1e3


def predict(n: int, names: Sequence[str] | None = None) -> Iterator[Prediction]:
    """Of calls on n elements, all or those named, which run on the emulated device."""
    tests = str(machine.ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import emulated

    reason = emulated.missing()
    if reason is not None:
        raise ValueError(f"predict: the emulated device cannot be built: {reason}")
    known = calls(n)
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise ValueError(f"predict: no call {wrong[0]!r}; there are {', '.join(map(repr, known))}")
    for name in names or known:
        call, least = known[name]
        emulated.launches()
        with emulated.device(processors=132, threads=2048):
            call()
        moved = sum(launch.sectors for launch in emulated.launches()) * emulated.SECTOR
        yield Prediction(name, moved, least)


def show(n: int, names: Sequence[str] | None = None) -> None:
    """Prints a table of them, and that nothing of it was measured."""
    predictions = list(predict(n, names))
    print(f"PREDICTED microseconds for {format_size(n)} elements: sectors moved over the card's bandwidth.")
    print("Nothing here was measured on a GPU.\n")
    print(f"{'call':34}{'sectors / least':>16}" + "".join(f"{card:>12}" for card in CARDS))
    print(f"{'GB/s':34}{'':16}" + "".join(f"{bandwidth:12}" for bandwidth in CARDS.values()))
    for p in predictions:
        times = "".join(f"{p.microseconds(card):12.1f}" for card in CARDS)
        print(f"{p.call:34}{p.moved / p.least:16.3f}{times}")
