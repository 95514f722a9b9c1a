"""Torch's own form of the operations that are no method of ``torch.Tensor``.

The functions of ``torch.nn.functional`` that take ``inplace``, and for the others the out-of-place function
and a copy: the only way that torch, its autograd and its compiler have.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from inplace_ext._assign import assign
from inplace_ext._dropout import (
    alpha_dropout,
    alpha_dropout_,
    dropout,
    dropout_,
    feature_alpha_dropout,
    feature_alpha_dropout_,
    feature_dropout,
    feature_dropout_,
)
from inplace_ext._layout import contiguous_, reshape_, squeeze_, view_
from inplace_ext._softmax import (
    log_softmax,
    log_softmax_,
    softmax,
    softmax_,
    softmax_relu,
    softmax_relu_,
)

__all__ = [  # those of other modules
    "alpha_dropout",
    "alpha_dropout_",
    "contiguous_",
    "dropout",
    "dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
    "feature_dropout",
    "feature_dropout_",
    "log_softmax",
    "log_softmax_",
    "reshape_",
    "softmax",
    "softmax_",
    "softmax_relu",
    "softmax_relu_",
    "squeeze_",
    "view_",
]

Number = float | int | bool


def copy_(*args: Any, **kwargs: Any) -> torch.Tensor:
    # The source is src in torch's documentation and schema, and other where torch parses the call.
    if "src" in kwargs and "other" not in kwargs:
        kwargs["other"] = kwargs.pop("src")
    return torch.Tensor.copy_(*args, **kwargs)


def _saved(input: torch.Tensor) -> torch.Tensor:
    """``input``, or a copy where autograd may keep it for a backward that must not see it changed."""
    return input.clone() if torch.is_grad_enabled() else input


def where_(input: torch.Tensor, mask: torch.Tensor, other: torch.Tensor | Number) -> torch.Tensor:
    return assign(input, torch.where(mask, input, other))


def setitem_(input: torch.Tensor, index: Any, value: torch.Tensor | Number) -> torch.Tensor:
    input[index] = value
    return input


def maximum_(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return assign(input, torch.maximum(_saved(input), other))


def minimum_(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return assign(input, torch.minimum(_saved(input), other))


def softplus_(input: torch.Tensor, beta: Number = 1, threshold: Number = 20) -> torch.Tensor:
    return assign(input, F.softplus(_saved(input), beta, threshold))


def gelu_(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return assign(input, F.gelu(_saved(input), approximate=approximate))


def relu6_(input: torch.Tensor) -> torch.Tensor:
    return F.relu6(input, inplace=True)


def hardtanh_(input: torch.Tensor, min_val: Number = -1.0, max_val: Number = 1.0) -> torch.Tensor:
    return F.hardtanh(input, min_val, max_val, inplace=True)


def threshold_(input: torch.Tensor, threshold: Number, value: Number) -> torch.Tensor:
    return F.threshold(input, threshold, value, inplace=True)


def leaky_relu_(input: torch.Tensor, negative_slope: Number = 0.01) -> torch.Tensor:
    return F.leaky_relu(input, negative_slope, inplace=True)


def hardsigmoid_(input: torch.Tensor) -> torch.Tensor:
    return F.hardsigmoid(input, inplace=True)


def hardswish_(input: torch.Tensor) -> torch.Tensor:
    return F.hardswish(input, inplace=True)


def elu_(input: torch.Tensor, alpha: Number = 1.0) -> torch.Tensor:
    return F.elu(input, alpha, inplace=True)


def celu_(input: torch.Tensor, alpha: Number = 1.0) -> torch.Tensor:
    return F.celu(input, alpha, inplace=True)


def selu_(input: torch.Tensor) -> torch.Tensor:
    return F.selu(input, inplace=True)


def silu_(input: torch.Tensor) -> torch.Tensor:
    return F.silu(input, inplace=True)


def mish_(input: torch.Tensor) -> torch.Tensor:
    return F.mish(input, inplace=True)
