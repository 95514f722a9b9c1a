"""Error messages: torch's exception, with what was given and what would do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from inplace_ext import _added
from inplace_ext._table import ALL_OPS

# Subclasses mean something to those who raise them, and may not be made from a message alone.
_EXPLAINED = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    NotImplementedError,
    ZeroDivisionError,
    OverflowError,
)

# torch's message -> what would do; the first that matches.
_HINTS = (
    (r"can't be cast|requires dtype|expected dtype",
     "Convert the operand to the dtype of input, or use the out-of-place operation."),
    (r"match the broadcast shape|must match the size of tensor|must match the existing size",
     "An in-place result keeps the shape of input: give an operand that broadcasts to it."),
    (r"leaf Variable that requires grad", "Write under torch.no_grad(), or into input.detach()."),
    (r"inference tensor", "Write under torch.inference_mode(), or into input.clone()."),
    (r"more than one element of the written-to tensor",
     "input overlaps itself, as expand() leaves it: write into input.clone()."),
    (r"refer to a single memory location",
     "input and an operand share memory in part: pass the operand as a clone()."),
    (r"returns multiple views", "Use the out-of-place operation, or write into the tensor that was split."),
    (r"negative integer powers", "Convert input to a floating point dtype first."),
    (r"two bool tensors", "Use logical_xor_ on bool tensors."),
    (r"on a bool tensor", "Use logical_not_ on bool tensors."),
    (r"Boolean inputs not supported", "Leave it out on a bool tensor, which it would not change."),
    (r"without overflow|too big to convert|out of bounds",
     "Give a number within the range of the dtype of input, or use a wider dtype."),
    (r"ZeroDivisionError", "Mask the zeros of an integer divisor first, or divide a floating point tensor."),
    (r"alpha must not be", "Give an integer alpha, or convert input to a floating point dtype."),
    (r"Boolean alpha", "Give alpha as a number."),
    (r"At least one of 'min' or 'max'", "Give min, max or both."),
    (r"index -?\d+ is out of (bounds|range)|tried to access index|index out of range",
     "Give indices within the dim of input."),
    (r"the mask is true for|number of ones in mask", "Give as many elements in source as are true in mask."),
    (r"too many indices", "Give at most one index for each dim of input."),
    (r"The shape of the mask", "Give a mask of the shape of the dims of input that it stands for."),
    (r"dtypes? match|same (s?c?a?l?a?r? ?d?type|dtypes?)|equal to src.dtype",
     "Convert the tensor that is written to the dtype of input."),
    (r"Dimension out of range", "Give a dim that input has."),
    (r"not implemented for|not intended to support",
     "Convert input to a dtype that the documentation of the operation lists."),
)  # fmt: skip


def explain(
    exc: BaseException, name: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> BaseException:
    """An exception of the type of ``exc`` that says more, or ``exc`` itself where there is nothing to add."""
    try:
        if type(exc) not in _EXPLAINED or hasattr(exc, "_inplace_ext_operation"):
            return exc
        message = _message(str(exc), type(exc), name, args, kwargs)
        explained = type(exc)(message)
    except Exception:
        # Whatever an argument does when it is looked at must not hide the error itself.
        return exc
    explained._inplace_ext_operation = name  # type: ignore[attr-defined]
    explained.__cause__ = exc
    return explained


def _message(
    said: str, kind: type[BaseException], name: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> str:
    op = _added.by_name.get(name) or ALL_OPS[name]
    labels = [
        *op.positional_names,
        *(f"argument {i + 1}" for i in range(len(op.positional_names), len(args))),
    ]
    named = [*zip(labels, args, strict=False), *kwargs.items()]
    given = ", ".join(f"{label}: {_describe(value)}" for label, value in named)
    if kind is TypeError:
        said = _argument_error(said, name, args, kwargs)
        hint = f"The signature is {name}{op.signature}."
    else:
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), "")
    first = said.partition("\n")[0].rstrip(" .:")
    return f"{name}: {first}. Got {given or 'no argument'}. {hint}".rstrip()


def _argument_error(said: str, name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """torch's complaint about arguments, in terms of a function of ``input``."""
    if not args and "input" not in kwargs:
        return "input is missing"
    target = args[0] if args else kwargs["input"]
    if not isinstance(target, torch.Tensor):
        return f"input must be a torch.Tensor, not {type(target).__name__}"
    said = re.sub(rf"^(TensorBase\.)?{name}\(\):? ", "", said)
    # What torch expected follows, without input and over many lines; the hint says it.
    return said.partition(", but expected")[0]


def _describe(value: Any) -> str:
    """What an argument is, without its data."""
    try:
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            device = "" if value.device.type == "cpu" else f" on {value.device}"
            return f"{dtype} tensor of shape {tuple(value.shape)}{device}"
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            text = repr(value)
            return text if len(text) <= 40 else f"{text[:37]}..."
    except Exception:
        pass
    return f"a {type(value).__name__}"
