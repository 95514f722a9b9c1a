"""Clipping of gradients: one reduction and one scaling, on all tensors in one call each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

import torch

from inplace_ext import _native
from inplace_ext._fuse import fuse

Parameters: TypeAlias = torch.Tensor | Iterable[torch.Tensor]


@fuse
def _scale_(grad: torch.Tensor, factor: float) -> None:
    grad.mul_(factor)


@fuse
def _limit_(grad: torch.Tensor, low: float, high: float) -> None:
    grad.clamp_(low, high)


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    if _native.module is not None:
        found: list[torch.Tensor] = _native.module.gradients(parameters)
        return found
    return [grad for p in parameters if (grad := p.grad) is not None]


def _nonfinite(norm_type: float) -> RuntimeError:
    return RuntimeError(
        f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it "
        "cannot be clipped. To disable this error and scale the gradients by the non-finite norm anyway, "
        "set `error_if_nonfinite=False`"
    )


@torch.no_grad()  # type: ignore[untyped-decorator]
def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scales the gradients of parameters, in place, so that their norm together is at most ``max_norm``.

    Formula: g = g * min(max_norm / (norm + 1e-6), 1), with the norm of all elements of all gradients.
    Shapes: any; ``parameters`` is a tensor or an iterable of tensors; those without a gradient do not count.
    Dtypes: float32, float64 by own kernels; others, sparse gradients, subclasses and other devices by torch.
    Maximum error: the norm is summed in double precision and rounded once.
    Returns: the norm before the scaling, a tensor without dims.
    Errors, each raised before anything is written:
        RuntimeError: the norm is NaN or infinite and ``error_if_nonfinite`` is true.
    Source: own kernels for orders 1, 2 and infinity of ``norm_type``, else torch. ``foreach`` is torch's.

    Same as :func:`torch.nn.utils.clip_grad_norm_`.

    >>> p = torch.zeros(2, requires_grad=True)
    >>> p.grad = torch.tensor([3.0, 4.0])
    >>> ie.clip_grad_norm_(p, 1.0)
    tensor(5.)
    >>> p.grad
    tensor([0.6000, 0.8000])
    """
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    grads = _gradients(parameters)
    max_norm, norm_type = float(max_norm), float(norm_type)
    if _native.cuda is not None and grads and grads[0].is_cuda:
        # The norm and the factor stay on the device; to look at the norm waits for it, as in torch.
        clipped = _native.module.clip_on_device(grads, norm_type, max_norm, error_if_nonfinite)
        if isinstance(clipped, torch.Tensor):
            return clipped
        if clipped is False:
            raise _nonfinite(norm_type)
    norm = _native.module.total_norm(grads, norm_type) if _native.module is not None and grads else None
    if norm is None:
        total: torch.Tensor = torch.nn.utils.clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
        return total
    dtype = grads[0].dtype
    total = torch.tensor(norm, dtype=dtype)
    if error_if_nonfinite and not math.isfinite(total):
        raise _nonfinite(norm_type)
    # In the dtype of the gradients, as torch computes it.
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0).item()
    _scale_(grads, factor)
    return total


@torch.no_grad()  # type: ignore[untyped-decorator]
def clip_grad_value_(parameters: Parameters, clip_value: float, foreach: bool | None = None) -> None:
    """Limits the elements of the gradients of parameters, in place, to [-clip_value, clip_value].

    Formula: g = min(max(g, -clip_value), clip_value), for each element g of each gradient.
    Shapes: any; ``parameters`` is a tensor or an iterable of tensors; those without a gradient do not count.
    Dtypes: float by own kernels; others, sparse gradients, subclasses and other devices by torch.
    Maximum error: 0 ulp (bitwise torch's).
    Returns: None.
    Errors: what :meth:`torch.Tensor.clamp_` raises.
    Source: own kernel ``clamp_`` on all gradients in one call, else torch's. ``foreach`` has no effect.

    Same as :func:`torch.nn.utils.clip_grad_value_`.

    >>> p = torch.zeros(2, requires_grad=True)
    >>> p.grad = torch.tensor([3.0, -4.0])
    >>> ie.clip_grad_value_(p, 3.5)
    >>> p.grad
    tensor([ 3.0000, -3.5000])
    """
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    grads = _gradients(parameters)
    clip_value = float(clip_value)
    if grads:
        _limit_(grads, -clip_value, clip_value)
