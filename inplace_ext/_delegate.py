"""What a call does where no kernel of this package applies: torch's method, kept to this package's contract.

Torch looks for shared memory only where that is cheap, meets an integer division by zero or an index out of
range when part of the tensor is written, refuses an inference tensor when all of it is, and sizes that
overflow when the tensor has them. The guard here sees to these for plain tensors, before anything is written
(sizes are put back), and leaves everything else to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import has_torch_function

from inplace_ext import _forms
from inplace_ext._table import INDEXED, Op

Function = Callable[..., Any]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DIVISIONS = ("div_", "floor_divide_", "fmod_", "remainder_")
_RESIZES = ("as_strided_", "resize_")


def torch_method(op: Op) -> Function:
    """What torch has for ``op``: the method of ``torch.Tensor``, or a form of a function that has none."""
    form: Function = getattr(_forms if hasattr(_forms, op.name) else torch.Tensor, op.name)
    return form


def is_division(op: Op) -> bool:
    """Whether ``op`` raises where an integer is divided by zero."""
    return (op.alias_of or op.name) in _DIVISIONS


def always_guarded(op: Op) -> bool:
    """Whether all calls of ``op`` need the guard: those with an index or a mask, and changes of size."""
    return op.name in INDEXED or op.name in _RESIZES


def delegate(op: Op) -> Function:
    """The callable that carries out ``op`` through torch, with ``input`` as its first argument."""
    method = torch_method(op)
    if not op.in_place:
        return method
    takes_tensors = op.takes_tensors
    divides, indexed, resizes = is_division(op), op.name in INDEXED, op.name in _RESIZES
    # Torch's masked_scatter_ does not look for shared memory.
    refused = op.name != "masked_scatter_"
    always_rounds = "rounding_mode" not in op.parameter_names and op.name != "true_divide_"

    def guarded(*args: Any, **kwargs: Any) -> Any:
        # A subclass or a mode is to see torch's method, and not what a guard looks at.
        if not args or type(args[0]) not in _PLAIN or has_torch_function(args[:1]):
            return method(*args, **kwargs)
        input, *operands = args
        if input.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
        if takes_tensors:
            args = (input, *[_unshared(input, operand, refused) for operand in operands])
            for name, operand in kwargs.items():
                kwargs[name] = _unshared(input, operand, refused)
            if divides and (always_rounds or kwargs.get("rounding_mode")):
                _check_divisor(input, args[1] if len(args) > 1 else kwargs.get("other"))
            if indexed and input.device.type == "cpu" and input.numel() > 0:
                _check_places(op.name, input, dict(zip(op.positional_names, args, strict=False)) | kwargs)
        return (_restoring if resizes else method)(*args, **kwargs)

    def _restoring(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        before = _geometry(input)
        try:
            return method(input, *args, **kwargs)
        except Exception:
            if before is not None and before != _geometry(input):
                with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(input):
                    input.as_strided_(*before)
            raise

    return guarded


def _geometry(input: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int] | None:
    """Sizes, strides and offset, which torch has set by the time that it finds that they overflow."""
    try:
        return input.size(), input.stride(), input.storage_offset()
    except (RuntimeError, NotImplementedError):  # without strides
        return None


def _unshared(input: torch.Tensor, operand: Any, refused: bool = True) -> Any:
    """``operand``, or a copy of it where writing ``input`` could change elements not read yet.

    ``refused`` where torch raises in the cases that it knows.
    """
    if type(operand) in (tuple, list):  # of indices
        return type(operand)(_unshared(input, item) for item in operand)
    if type(operand) not in _PLAIN or (operand is input and refused):
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
    if not refused:
        return operand.clone()
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


#: Whether negative indices count from the end, and what torch raises for an index out of range.
_RANGES: dict[str, tuple[bool, type[Exception]]] = {
    "index_fill_": (True, IndexError),
    "index_copy_": (False, IndexError),
    "index_add_": (False, IndexError),
    "scatter_": (False, RuntimeError),
    "scatter_add_": (False, RuntimeError),
    "put_": (True, IndexError),
}


def _check_places(name: str, input: torch.Tensor, given: dict[str, Any]) -> None:
    """Raises torch's error for an index out of range, and for a mask with more places than the source has.

    What else is wrong with a call torch finds before it writes.
    """
    written = next((given[key] for key in ("source", "src", "value", "values") if key in given), None)
    if isinstance(written, torch.Tensor) and written.dtype != input.dtype:
        return
    try:
        if name == "masked_scatter_":
            _check_count(input, given["mask"], given["source"])
        elif name in _RANGES:
            _check_range(name, input, given["index"], 0 if name == "put_" else given["dim"])
        elif name == "setitem_" or isinstance(written, torch.Tensor):
            index = given["index"] if name == "setitem_" else tuple(given["indices"])
            items = index if isinstance(index, tuple) else (index,)
            if any(_counts(item) for item in items):
                # One element in the place of all: to read it where it would be written raises the same.
                place = torch.empty((), dtype=torch.bool).expand(input.shape)
                place[index]
    except (KeyError, TypeError, AttributeError, NotImplementedError):  # torch will say it
        return
    except RuntimeError as error:
        # No data to look at: tensors of torch.func, fake ones.
        if not getattr(error, "_out_of_range", False):
            return
        raise


def _counts(item: Any) -> bool:
    """Whether an item of an index has numbers of places, which may be out of range."""
    return isinstance(item, list) or (isinstance(item, torch.Tensor) and item.dtype != torch.bool)


def _out_of_range(kind: type[Exception], message: str) -> Exception:
    error = kind(message)
    error._out_of_range = True  # type: ignore[attr-defined]
    return error


def _check_range(name: str, input: torch.Tensor, index: torch.Tensor, dim: int) -> None:
    negative, kind = _RANGES[name]
    if index.dtype not in (torch.int64, torch.int32) or index.numel() == 0:
        return
    size = input.numel() if name == "put_" else input.size(dim) if input.dim() else 1
    low = -size if negative else 0
    outside = (index < low) | (index >= size)
    if outside.any():
        raise _out_of_range(
            kind, f"index {int(index[outside][0])} is out of bounds for dimension {dim} with size {size}"
        )


def _check_count(input: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> None:
    if mask.dtype != torch.bool:
        return
    count = int(mask.expand(input.shape).sum())
    if count > source.numel():
        raise _out_of_range(
            RuntimeError, f"the mask is true for {count} elements, and source has {source.numel()}"
        )
