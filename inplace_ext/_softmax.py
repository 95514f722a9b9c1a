"""softmax and its kin, where the call is not one for the kernel alone: by the operator, or through torch."""

from __future__ import annotations

import torch

from inplace_ext import _operators
from inplace_ext._assign import assign

HALVES = (torch.float16, torch.bfloat16)


def _check(input: torch.Tensor, dim: int, scale: float, mask: torch.Tensor | None) -> None:
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(input).__name__}")
    if not isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"scale must be a number, not {type(scale).__name__}")
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, not {type(mask).__name__}")
    if mask is not None and not (mask.dtype == torch.bool or mask.dtype.is_floating_point):
        raise TypeError(f"mask must be a bool or floating tensor, not {mask.dtype}")
    if not input.dtype.is_floating_point:
        torch.softmax(input, dim)  # which raises: scaled, an integer tensor would pass


def _operator_takes(input: torch.Tensor, dim: int, mask: torch.Tensor | None) -> bool:
    # A dim that is no int is torch's to refuse.
    if not isinstance(dim, int) or not _operators.take(input, mask):
        return False
    if mask is None:
        return True
    mask.expand(input.shape)  # which raises where it does not broadcast
    return mask.dtype in (torch.bool, input.dtype)


def _through_torch(
    input: torch.Tensor,
    dim: int,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
    logarithm: bool = False,
) -> torch.Tensor:
    """Of 16-bit scores that are scaled or masked, computed in float32: its dtype is the result's."""
    scores = input
    if scale != 1 or mask is not None:
        scores = input.float() if input.dtype in HALVES else input
        if scale != 1:
            scores = scores * scale
        if mask is not None:
            mask = mask.expand(input.shape)
            keeps = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, float("-inf")) if keeps else scores + mask
    return torch.log_softmax(scores, dim) if logarithm else torch.softmax(scores, dim)


def _through_torch_(
    input: torch.Tensor,
    dim: int,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
    logarithm: bool = False,
) -> torch.Tensor:
    return assign(input, _through_torch(input, dim, scale, mask, logarithm))


def _through_torch_rounded(
    input: torch.Tensor,
    dim: int,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
    logarithm: bool = False,
) -> torch.Tensor:
    return _through_torch(input, dim, scale, mask, logarithm).to(input.dtype)


_operators.transform("softmax_", _through_torch_)
_operators.transform("softmax", _through_torch_rounded)


def softmax_(
    input: torch.Tensor, dim: int = -1, *, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _in_place(input, dim, scale, mask, False)


def log_softmax_(
    input: torch.Tensor, dim: int = -1, *, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _in_place(input, dim, scale, mask, True)


def softmax(
    input: torch.Tensor, dim: int = -1, *, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _new(input, dim, scale, mask, False)


def log_softmax(
    input: torch.Tensor, dim: int = -1, *, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return _new(input, dim, scale, mask, True)


# A softmax is never negative: a relu after it changes nothing, and nor does its gradient, which differs where
# the softmax is 0 and its own gradient too.
softmax_relu_, softmax_relu = softmax_, softmax


def _in_place(
    input: torch.Tensor, dim: int, scale: float, mask: torch.Tensor | None, logarithm: bool
) -> torch.Tensor:
    _check(input, dim, scale, mask)
    if _operator_takes(input, dim, mask):
        torch.ops.inplace_ext.softmax_(input, dim, scale, mask, logarithm)
        return input
    return _through_torch_(input, dim, scale, mask, logarithm)


def _new(
    input: torch.Tensor, dim: int, scale: float, mask: torch.Tensor | None, logarithm: bool
) -> torch.Tensor:
    _check(input, dim, scale, mask)
    if _operator_takes(input, dim, mask):
        result: torch.Tensor = torch.ops.inplace_ext.softmax(input, dim, scale, mask, logarithm)
        return result
    return _through_torch_rounded(input, dim, scale, mask, logarithm)
