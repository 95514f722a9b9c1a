"""Torch's own form of the operations that are no method of ``torch.Tensor``.

The functions of ``torch.nn.functional`` that take ``inplace``, and for the others the out-of-place function
and a copy: the only way that torch, its autograd and its compiler have.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Number = float | int | bool


def copy_(*args: Any, **kwargs: Any) -> torch.Tensor:
    # The source is src in torch's documentation and schema, and other where torch parses the call.
    if "src" in kwargs and "other" not in kwargs:
        kwargs["other"] = kwargs.pop("src")
    return torch.Tensor.copy_(*args, **kwargs)


def _assign(input: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Copies a result into ``input``, where torch's in-place methods would leave it there."""
    if result.shape != input.shape:
        raise RuntimeError(
            f"output with shape {list(input.shape)} doesn't match the broadcast shape {list(result.shape)}"
        )
    # What torch.can_cast says, which its compiler cannot trace.
    real = input.dtype.is_floating_point or input.dtype.is_complex
    loses = (result.dtype.is_complex and not input.dtype.is_complex) or (
        result.dtype.is_floating_point and not real
    )
    if loses or (input.dtype == torch.bool and result.dtype != torch.bool):
        raise RuntimeError(
            f"result type {result.dtype} can't be cast to the desired output type {input.dtype}"
        )
    return input.copy_(result)


def _saved(input: torch.Tensor) -> torch.Tensor:
    """``input``, or a copy where autograd may keep it for a backward that must not see it changed."""
    return input.clone() if torch.is_grad_enabled() else input


def where_(input: torch.Tensor, mask: torch.Tensor, other: torch.Tensor | Number) -> torch.Tensor:
    return _assign(input, torch.where(mask, input, other))


def maximum_(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _assign(input, torch.maximum(_saved(input), other))


def minimum_(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _assign(input, torch.minimum(_saved(input), other))


def softplus_(input: torch.Tensor, beta: Number = 1, threshold: Number = 20) -> torch.Tensor:
    return _assign(input, F.softplus(_saved(input), beta, threshold))


def gelu_(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return _assign(input, F.gelu(_saved(input), approximate=approximate))


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


def _scores(input: torch.Tensor, dim: int, scale: Number, mask: torch.Tensor | None) -> torch.Tensor:
    """What softmax is taken of: scaled and masked, by way of float32 where ``input`` has 16 bits."""
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(input).__name__}")
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number, not {type(scale).__name__}")
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, not {type(mask).__name__}")
    if mask is not None and not (mask.dtype == torch.bool or mask.dtype.is_floating_point):
        raise TypeError(f"mask must be a bool or floating tensor, not {mask.dtype}")
    if not input.dtype.is_floating_point:
        torch.softmax(input, dim)  # which raises: scaled, an integer tensor would pass
    if scale == 1 and mask is None:
        return input
    scores = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    if scale != 1:
        scores = scores * scale
    if mask is None:
        return scores
    mask = mask.expand(input.shape)
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def softmax_(
    input: torch.Tensor, dim: int = -1, *, scale: Number = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _assign(input, torch.softmax(_scores(input, dim, scale, mask), dim))


def log_softmax_(
    input: torch.Tensor, dim: int = -1, *, scale: Number = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _assign(input, torch.log_softmax(_scores(input, dim, scale, mask), dim))


def softmax_relu_(
    input: torch.Tensor, dim: int = -1, *, scale: Number = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _assign(input, torch.relu(torch.softmax(_scores(input, dim, scale, mask), dim)))
