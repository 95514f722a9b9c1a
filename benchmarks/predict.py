"""Predicts, from the memory that the kernels move on the emulated device, the time of calls on real ones.

A PREDICTION, NOT A MEASUREMENT: no GPU takes part. The emulation (tests/emulate) counts the 32-byte sectors
that the kernels of csrc/cuda read and write, and those are divided by the card's bandwidth. A real launch adds
some microseconds, reaches 85 to 95% of that bandwidth, and finds in its caches what was there before; where
arithmetic takes longer than memory (long chains, double precision on consumer cards) it decides.

    python benchmarks/predict.py [--elements N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import emulated

import inplace_ext as ie

#: Memory bandwidth in GB/s, from the makers' data sheets.
CARDS = {"T4": 320, "A100 80 GB": 2039, "H100 SXM": 3350, "RTX 4090": 1008, "RTX 5090": 1792, "B200": 8000}


def calls(n: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Calls on n elements, each with the bytes that it must move."""
    rows = torch.randn(n // 1024, 1024)
    half, flat, other = rows.bfloat16(), rows.view(-1).clone(), torch.randn(n)
    long = torch.randn(max(n // 65536, 1), min(n, 65536))
    f32, bf16 = 4 * n, 2 * n
    return {
        "x.mul_(2)": (lambda: ie.mul_(flat, 2), 2 * f32),
        "x.add_(y)": (lambda: ie.add_(flat, other), 3 * f32),
        "x.exp_(), bfloat16": (lambda: ie.exp_(half), 2 * bf16),
        "softmax_, rows of 1024": (lambda: ie.softmax_(rows, -1), 2 * f32),
        "softmax_, rows of 1024, bfloat16": (lambda: ie.softmax_(half, -1), 2 * bf16),
        "softmax_, rows of 65536": (lambda: ie.softmax_(long, -1), 2 * f32),
        "softmax_ along dim 0": (lambda: ie.softmax_(rows, 0), 2 * f32),
        "dropout_(p=0.5)": (lambda: ie.dropout_(flat, 0.5, seed=1), 2 * f32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=1 << 20)
    n = parser.parse_args().elements
    reason = emulated.missing()
    if reason is not None:
        sys.exit(f"predict.py: the emulated device cannot be built: {reason}")
    print(f"PREDICTED time in microseconds for {n} elements: sectors moved over the card's bandwidth.")
    print("Nothing here was measured on a GPU.\n")
    print(f"{'call':34}{'sectors / least':>16}" + "".join(f"{card:>12}" for card in CARDS))
    for name, (call, least) in calls(n).items():
        emulated.launches()
        with emulated.device(processors=132, threads=2048):
            call()
        moved = sum(launch.sectors for launch in emulated.launches()) * emulated.SECTOR
        times = "".join(f"{moved / bandwidth / 1e3:12.1f}" for bandwidth in CARDS.values())
        print(f"{name:34}{moved / least:16.3f}{times}")


if __name__ == "__main__":
    main()
