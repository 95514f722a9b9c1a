"""What a call does where no kernel of this package applies: torch's method, kept to this package's contract.

Torch looks for shared memory only where that is cheap, meets an integer division by zero when part of the
tensor is written, and refuses an inference tensor when all of it is. The guard here sees to these for plain
tensors, before anything is written, and leaves everything else to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import has_torch_function

from inplace_ext import _forms
from inplace_ext._table import Op

Function = Callable[..., Any]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DIVISIONS = ("div_", "floor_divide_", "fmod_", "remainder_")


def torch_method(op: Op) -> Function:
    """What torch has for ``op``: the method of ``torch.Tensor``, or a form of a function that has none."""
    form: Function = getattr(_forms if hasattr(_forms, op.name) else torch.Tensor, op.name)
    return form


def is_division(op: Op) -> bool:
    """Whether ``op`` raises where an integer is divided by zero."""
    return (op.alias_of or op.name) in _DIVISIONS


def delegate(op: Op) -> Function:
    """The callable that carries out ``op`` through torch, with ``input`` as its first argument."""
    method = torch_method(op)
    if not op.in_place:
        return method
    takes_tensors = op.takes_tensors
    divides = is_division(op)
    always_rounds = "rounding_mode" not in op.parameter_names and op.name != "true_divide_"

    def guarded(*args: Any, **kwargs: Any) -> Any:
        # A subclass or a mode is to see torch's method, and not what a guard looks at.
        if not args or type(args[0]) not in _PLAIN or has_torch_function(args[:1]):
            return method(*args, **kwargs)
        input, *operands = args
        if input.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
        if takes_tensors:
            args = (input, *[_unshared(input, operand) for operand in operands])
            for name, operand in kwargs.items():
                kwargs[name] = _unshared(input, operand)
            if divides and (always_rounds or kwargs.get("rounding_mode")):
                _check_divisor(input, args[1] if len(args) > 1 else kwargs.get("other"))
        return method(*args, **kwargs)

    return guarded


def _unshared(input: torch.Tensor, operand: Any) -> Any:
    """``operand``, or a copy of it where writing ``input`` could change elements not read yet."""
    if type(operand) not in _PLAIN or operand is input:
        return operand
    try:
        storage, operand_storage = input.untyped_storage(), operand.untyped_storage()
        distance = operand_storage.data_ptr() - storage.data_ptr()
        if distance >= storage.nbytes() or -distance >= operand_storage.nbytes():
            return operand
        begin, end = _extent(input)
        operand_begin, operand_end = _extent(operand)
    except (RuntimeError, NotImplementedError):  # no strided memory: sparse tensors, those of torch.func
        return operand
    if operand_begin >= end or begin >= operand_end:
        return operand
    if begin == operand_begin and (input.shape, input.stride(), input.dtype) == (
        operand.shape,
        operand.stride(),
        operand.dtype,
    ):
        return operand
    if _is_dense(input) and _is_dense(operand):
        return operand  # a case that torch knows, and refuses
    return operand.clone()


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the one past the last; equal where there is no memory."""
    begin = tensor.data_ptr()
    if begin == 0 or tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their extent, in any order of the dims."""
    begin, end = _extent(tensor)
    return bool(end - begin == tensor.numel() * tensor.element_size())


def _is_integral(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _check_divisor(input: torch.Tensor, divisor: Any) -> None:
    """Raises torch's error for a division that meets a zero: of integers, on the CPU."""
    if type(divisor) not in _PLAIN or input.device.type != "cpu" or input.numel() == 0:
        return
    try:
        # Of two bool tensors torch refuses the division as such.
        both_bool = input.dtype == divisor.dtype == torch.bool
        raises = _is_integral(input) and _is_integral(divisor) and not both_bool and not divisor.all()
    except (RuntimeError, NotImplementedError):  # no data to look at: tensors of torch.func, fake ones
        return
    if raises:
        raise RuntimeError("ZeroDivisionError")
