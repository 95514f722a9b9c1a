"""Which calls the operators ``torch.ops.inplace_ext`` take, and what they are under ``torch.func``.

The compiled module registers them, with autograd; ``_softmax.py`` and ``_dropout.py`` call them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd.forward_ad import unpack_dual

from inplace_ext import _native

MAX_DIMS = 16  # kMaxDims in C++
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Beside plain tensors those that stand for them while torch.compile and torch.export trace.
_TYPES = (torch.Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def take(input: torch.Tensor, mask: torch.Tensor | None = None) -> bool:
    """Whether an operator takes the tensors; torch's own functions take all others."""
    if not _native.operators():
        return False
    if input.dtype not in FLOATS or input.dim() > MAX_DIMS:
        return False
    if type(input) not in _TYPES or input.device.type not in _native.devices or input.layout != torch.strided:
        return False
    if mask is not None and (type(mask) not in _TYPES or mask.device != input.device):
        return False
    if torch.compiler.is_compiling():
        return True
    if torch._C._is_torch_function_mode_enabled():  # which is to see torch's functions
        return False
    # Forward-mode AD has no use for a backward.
    return unpack_dual(input).tangent is None and (mask is None or unpack_dual(mask).tangent is None)


_library: torch.library.Library | None = None


def transform(name: str, function: Callable[..., Any]) -> None:
    """Has ``torch.func`` (vmap, grad, jvp) see ``function``, made of torch's own, in place of an operator."""
    global _library
    if _native.module is None:
        return
    if _library is None:
        _library = torch.library.Library("inplace_ext", "IMPL")
    _library.impl(name, function, "FuncTorchDynamicLayerFrontMode")
