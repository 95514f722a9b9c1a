"""How operations scale from one thread to more, ours and torch's, in one run.

    python benchmarks/threads.py                # 1 and 2 threads
    python benchmarks/threads.py --threads 8

Timed as in ops.py; setting the number of threads is part of each call, on both sides. A gain near 1 is right
where one thread already fills the memory bus, and for small tensors, which stay on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import Side, compare

import inplace_ext as ie

BUDGET = 0.2
SIZES = [4 << 10, 64 << 10, 1 << 20, 16 << 20]

OPS: dict[str, tuple[Side, Side]] = {
    "mul_ 1.25": (lambda x: ie.mul_(x, 1.25), lambda x: x.mul_(1.25)),
    "exp_": (ie.exp_, torch.Tensor.exp_),
    "tanh_": (ie.tanh_, torch.Tensor.tanh_),
    "pow_ 1.5": (lambda x: ie.pow_(x, 1.5), lambda x: x.pow_(1.5)),
    "x.t() mul_": (lambda x: ie.mul_(x.view(64, -1).t(), 1.25), lambda x: x.view(64, -1).t().mul_(1.25)),
    "x[:, ::2] mul_": (
        lambda x: ie.mul_(x.view(64, -1)[:, ::2], 1.25),
        lambda x: x.view(64, -1)[:, ::2].mul_(1.25),
    ),
}


def on(threads: int, f: Side) -> Callable[[torch.Tensor], object]:
    """f with a number of threads."""

    def side(x: torch.Tensor) -> object:
        torch.set_num_threads(threads)
        return f(x)

    return side


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {ie.info().capability} kernels, gain of {options.threads} threads over 1")
    header = f"{'operation':16} {'elements':>9} {'ours on 1':>10} {'ours':>6} {'torch':>6}"
    print(header + "\n" + "-" * len(header))
    for name, sides in OPS.items():
        for size in SIZES:
            source = torch.rand(size).add_(0.5)
            cases = [on(n, f) for f in sides for n in (1, options.threads)]
            one, many, torch_one, torch_many = compare(cases, source, [source.clone()], BUDGET)
            print(
                f"{name:16} {size:9} {one * 1e6:8.1f}us {one / many:6.2f} {torch_one / torch_many:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
