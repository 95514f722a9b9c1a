"""SGD with momentum and AdamW as fused functions: a step of all parameters is one call, a pass over each.

    python examples/optimizers.py

The formulas are those of ``torch.optim``, written as ordinary in-place code. The numbers are arguments, so
that another learning rate or step is no other program.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

import inplace_ext as ie


@ie.fuse
def sgd_(
    p: torch.Tensor, grad: torch.Tensor, buf: torch.Tensor, lr: float, momentum: float, weight_decay: float
) -> None:
    """A step of ``torch.optim.SGD(lr, momentum, weight_decay)``; ``buf`` begins as zeros."""
    if weight_decay != 0:
        grad = grad + weight_decay * p
    buf.mul_(momentum).add_(grad)
    p.add_(buf, alpha=-lr)


@ie.fuse
def adamw_(
    p: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Step ``step``, from 1, of ``torch.optim.AdamW(lr, (beta1, beta2), eps, weight_decay)``."""
    p.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = (1 - beta2**step) ** 0.5
    p.addcdiv_(exp_avg, exp_avg_sq.sqrt().div_(root).add_(eps), value=-lr / (1 - beta1**step))


class AdamW:
    """The parameters of a model and their state; ``step()`` after each backward."""

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.parameters = list(parameters)
        self.numbers = (lr, *betas, eps, weight_decay)
        self.state = [[torch.zeros_like(p) for p in self.parameters] for _ in range(2)]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        grads = [p.grad for p in self.parameters]
        adamw_(self.parameters, grads, *self.state, self.steps, *self.numbers)


def main() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64)]
    model = torch.nn.Sequential(*layers)
    x = torch.randn(256, 64)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    start = time.perf_counter()
    for i in range(100):
        loss = (model(x) - x.roll(1, 1)).square().mean()
        model.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 20 == 0:
            print(f"step {i:3}: loss {loss:.4f}")
    print(f"100 steps in {time.perf_counter() - start:.2f} s, loss {loss:.4f}")


if __name__ == "__main__":
    main()
