"""Uses that a type checker must accept; tests/test_table.py runs mypy over this file."""

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import inplace_ext as ie


def use(x: Tensor, weight: nn.Parameter) -> Tensor:
    assert_type(ie.add_(x, 1), Tensor)
    assert_type(ie.mul_(weight, x), nn.Parameter)
    ie.add_(input=x, other=x, alpha=0.5)
    ie.div_(x, 2, rounding_mode="floor")
    ie.clamp_(x, 0, 1)
    ie.clamp_(x, max=x)
    ie.pow_(x, exponent=2.2)
    ie.copy_(x, x.half(), non_blocking=True)
    ie.masked_fill_(x, x > 0, True)
    ie.lerp_(x, x, 0.5)
    ie.addcmul_(x, x, x, value=1j)
    ie.round_(x, decimals=2)
    assert_type(ie.softmax_(weight, 0, scale=0.5, mask=x > 0), nn.Parameter)
    assert_type(ie.softmax(weight, 0, scale=0.5, mask=x > 0), Tensor)
    assert_type(ie.dropout_(weight, 0.1, seed=7, offset=1), nn.Parameter)
    assert_type(ie.dropout(weight, 0.1, generator=None), Tensor)
    assert_type(ie.nn.Dropout(0.1), ie.nn.Dropout)
    version: str = ie.__version__
    print(version, ie.info().capability, len(ie.__all__))
    return ie.relu_(ie.neg_(x))


def misuse(x: Tensor) -> None:
    ie.add_(x, "1")  # type: ignore[arg-type]
    ie.exp_(x, 1)  # type: ignore[call-arg]
    ie.clamp_(x, 0, x)  # type: ignore[call-overload]
    ie.div_(x, 2, rounding_mode="ceil")  # type: ignore[arg-type]
    ie.atan2_(x, 1)  # type: ignore[arg-type]
    ie.softmax_(x, 0, 0.5)  # type: ignore[call-arg]
    ie.no_such_operation_(x)  # type: ignore[attr-defined]


if __name__ == "__main__":
    use(torch.ones(3), nn.Parameter(torch.ones(3)))
