"""Shape and order in place: what ``torch.Tensor`` has no method for.

``view_`` and ``reshape_`` change the metadata of the tensor object through ``as_strided_``, which autograd
records. ``contiguous_`` moves the data where it lies; the compiled module does that with scratch memory that
does not grow with the tensor, and torch with a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeAlias

import torch

from inplace_ext import _compile, _native

Shape: TypeAlias = int | Sequence[int]

_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
_NO_VIEW = "view size is not compatible"


def _check(input: torch.Tensor, shape: tuple[Shape, ...]) -> None:
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(input).__name__}")
    if any(isinstance(size, torch.dtype) for size in shape):
        raise TypeError("shape must be ints, not a torch.dtype")
    if not shape:
        raise TypeError("shape is missing; () is that of a tensor without dims")
    _check_transforms(input)


def _check_transforms(input: torch.Tensor) -> None:
    # as_strided_ has no rule for vmap, and what stands for it there leaves the tensor as it was.
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(input):
        raise RuntimeError(
            "a tensor cannot change its layout inside vmap, grad and the other transforms of torch.func; "
            "use the out-of-place view, reshape or contiguous there"
        )


def squeeze_(input: torch.Tensor, dim: Shape | None = None) -> torch.Tensor:
    return torch.Tensor.squeeze_(input) if dim is None else torch.Tensor.squeeze_(input, dim)


def view_(input: torch.Tensor, *shape: Shape) -> torch.Tensor:
    _check(input, shape)
    try:
        return _adopt(input, _view(input, shape))
    except RuntimeError as exc:
        if _NO_VIEW not in str(exc):
            raise
        said = str(exc).partition(". Use .reshape")[0]
        raise RuntimeError(f"{said}: {_clash(input, _ints(input, shape))}. Use reshape_") from exc


def reshape_(input: torch.Tensor, *shape: Shape) -> torch.Tensor:
    _check(input, shape)
    try:
        return _adopt(input, _view(input, shape))
    except RuntimeError as exc:
        if _NO_VIEW not in str(exc):
            raise
    contiguous_(input)
    return _adopt(input, _view(input, shape))


def _view(input: torch.Tensor, shape: tuple[Shape, ...]) -> torch.Tensor:
    with torch.no_grad():
        return input.view(*shape)


def _adopt(input: torch.Tensor, viewed: torch.Tensor) -> torch.Tensor:
    """``input`` with the shape and strides of a view of it."""
    return input.as_strided_(viewed.size(), viewed.stride())


def _ints(input: torch.Tensor, shape: tuple[Shape, ...]) -> list[int]:
    """The sizes that are asked for, without -1."""
    return list(torch.empty(input.shape, device="meta").view(*shape).shape)


def _clash(input: torch.Tensor, shape: list[int]) -> str:
    """Which dims of ``input`` a view of this shape would have to merge, though they are no neighbours."""
    sizes, strides = input.shape, input.stride()
    # Runs of dims that lie as one, from the last on, each of which whole dims of the view have to fill.
    step, run, filled, at = strides[-1], 1, 1, len(shape) - 1
    for d in range(len(sizes) - 1, 0, -1):
        run *= sizes[d]
        if sizes[d - 1] == 1 or strides[d - 1] == run * step:
            continue
        while at >= 0 and (filled < run or shape[at] == 1):
            filled *= shape[at]
            at -= 1
        if filled != run:
            inner = next((k for k in range(d, len(sizes)) if sizes[k] != 1), d)
            return (
                f"dims {d - 1} and {inner} of input, of sizes {sizes[d - 1]} and {sizes[inner]} and strides "
                f"{strides[d - 1]} and {strides[inner]}, are no neighbours in memory"
            )
        step, run, filled = strides[d - 1], 1, 1
    return "its dims are no neighbours in memory"


def contiguous_(input: torch.Tensor, memory_format: torch.memory_format | None = None) -> torch.Tensor:
    return _rearrange(input, memory_format)


# Out of Dynamo's sight: strides of a graph's tensors are its compiler's affair, and references are counted.
def _rearrange(input: torch.Tensor, memory_format: torch.memory_format | None) -> torch.Tensor:
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(input).__name__}")
    if memory_format is None:
        memory_format = torch.contiguous_format
    if not isinstance(memory_format, torch.memory_format):
        raise TypeError(f"memory_format must be a torch.memory_format, not {type(memory_format).__name__}")
    _check_transforms(input)
    if memory_format not in _FORMATS:
        raise RuntimeError(f"{memory_format} is no layout; give one of {', '.join(map(str, _FORMATS))}")
    torch.empty(input.shape, device="meta", memory_format=memory_format)  # which checks the rank
    if input.requires_grad and input.is_leaf and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    if input.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
    if input.is_contiguous(memory_format=memory_format):
        return input
    if input.requires_grad and input._is_view():
        raise RuntimeError(
            "input is a view that autograd differentiates through, and its base would be another tensor; use "
            "input.contiguous()"
        )
    if torch._debug_has_internal_overlap(input) == 1:
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            "location. Please clone() the tensor before performing the operation."
        )
    _check_unshared(input)
    if _native.module is not None and _native.module.rearrange(
        input, memory_format != torch.contiguous_format
    ):
        return input
    # The values are the same, and so is what autograd has recorded of them.
    with torch.no_grad():
        copy = input.contiguous(memory_format=memory_format)
        input.as_strided_(copy.size(), copy.stride(), input.storage_offset())
        return input.copy_(copy)


_compile.keep_out(sys.modules[__name__], "_rearrange")


def _references(input: torch.Tensor) -> tuple[int, ...]:
    """How many hold the storage of ``input``, and the tensor that it is a view of."""
    holders: int = torch._C._storage_Use_Count(input.untyped_storage()._cdata)
    base = input._base
    return (holders,) if base is None else (holders, sys.getrefcount(base), base._use_count())


#: What _references() says of a tensor whose storage nobody else has, alone and as a view of such a tensor,
#: which it keeps alive.
_ALONE: list[tuple[int, ...]] = []


def _check_unshared(input: torch.Tensor) -> None:
    """Raises where another tensor is seen that would find its elements in other places."""
    if not _ALONE:
        empty = torch.zeros(2, device="cpu")
        _ALONE.append(_references(empty))
        del empty
        _ALONE.append(_references(torch.zeros(2, device="cpu")[:1]))
    try:
        references = _references(input)
    except (RuntimeError, NotImplementedError):  # without a storage: nothing to be seen
        return
    if references in _ALONE:
        return
    if input._base is not None and references[1:] != _ALONE[1][1:]:
        raise RuntimeError(
            f"input is a view of a tensor of shape {tuple(input._base.shape)} that is in use, itself or "
            "through another view, and would see its elements in other places; delete those first, or use "
            "input.contiguous()"
        )
    raise RuntimeError(
        "another tensor uses the storage of input and would see its elements in other places; delete that "
        "one first, or use input.contiguous()"
    )
