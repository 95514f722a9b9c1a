"""Docstrings of the operations, built from the op table."""

from __future__ import annotations

import re

from inplace_ext._table import INDEXED, LAYOUT, RANDOM, ROWS, Op

#: softmax and dropout, in place and in a new tensor: the only tensor beside input is a mask, read as it is.
_OF_ROWS, _AT_RANDOM = ({name for op in group for name in (op, op[:-1])} for group in (ROWS, RANDOM))

_SHAPE_ERROR = "RuntimeError: the result of broadcasting has another shape than ``input``."
_CAST_ERROR = "RuntimeError: the result type cannot be cast to the dtype of ``input``."
_TYPE_ERROR = "TypeError: an argument is missing, unknown or of a wrong type."
_AUTOGRAD_ERROR = "RuntimeError: ``input`` is a leaf that requires grad, or an inference tensor."
_OVERLAP_ERROR = "RuntimeError: elements of ``input`` share memory, as after ``expand``."
_SHARED_ERROR = "RuntimeError: ``input`` and an operand share memory in part."


def docstring(op: Op) -> str:
    """The docstring of a public operation; its example runs as a doctest."""
    if op.name in LAYOUT:
        return _docstring_of_layout(op)
    lines = [f"{op.what}, in place." if op.in_place else f"{op.what}, in a new tensor."]
    if op.alias_of:
        lines[0] += f" Alias of :func:`{op.alias_of}`."
    indexed = op.name in INDEXED
    becomes = "x = " if op.in_place else ""
    whole = f"{op.formula}, x being ``input``" if indexed else ""
    lines += ["", f"Formula: {whole or f'{becomes}{op.formula}, for each element x of ``input``'}."]
    if indexed:
        lines.append("Shapes: as the notes say; the shape of ``input`` never changes.")
    elif op.takes_tensors:
        lines.append("Shapes: operands broadcast to ``input``, whose own shape never changes.")
    else:
        lines.append("Shapes: any; the shape of ``input`` never changes.")
    lines.append(f"Dtypes: {', '.join(op.dtype_names)}.")
    # Moves compute nothing, and what torch computes in is torch's affair.
    computes = op.native and not indexed and re.search(r"\bx\b", op.formula)
    rounding = "; float16 and bfloat16 are computed in float32 and rounded once" if computes else ""
    lines.append(f"Maximum error: {op.ulp}{rounding}.")
    lines += [f"Note: {op.notes[0]}", *(f"    {note}" for note in op.notes[1:])] if op.notes else []
    if op.in_place:
        lines.append("Returns: ``input`` itself.")
    elif op.name in _AT_RANDOM:
        lines.append("Returns: a new tensor; ``input`` itself where nothing is dropped, as in torch.")
    else:
        lines.append("Returns: a new tensor.")
    lines.append("Errors, each raised before anything is written:")
    errors = [*op.errors, _TYPE_ERROR]
    if op.takes_tensors and not indexed:
        errors += [_SHAPE_ERROR] if op.name in _OF_ROWS else [_CAST_ERROR, _SHAPE_ERROR]
    if op.in_place:
        errors.append(_AUTOGRAD_ERROR)
    if op.in_place and op.name not in ("fill_", "zero_", "index_fill_", "index_put_"):
        errors.append(_OVERLAP_ERROR)
        if op.takes_tensors and op.name not in _OF_ROWS and not indexed:
            errors.append(_SHARED_ERROR)
    lines += [f"    {error}" for error in errors]
    if op.name in _OF_ROWS | _AT_RANDOM:
        saved = "its output" if op.name in _OF_ROWS else "seed and offset, and no mask"
        lines.append(f"Autograd: saves {saved}. torch.func and forward-mode AD go through torch's functions.")
        lines.append("Source: own kernels for CPU tensors, else torch.")
    elif op.kernel:
        lines.append(f"Source: own kernel ``{op.kernel}`` for real CPU tensors without autograd, else torch.")
    else:
        lines.append("Source: torch.")
    same = f":func:`{op.like}`, in place" if op.like else f":meth:`torch.Tensor.{op.name}`"
    if op.name in _OF_ROWS:
        same = f":func:`{op.like}` of the scores{', in place' if op.in_place else ''}"
    elif op.name in _AT_RANDOM:
        same = f":func:`{op.like}`, with another mask{', and in place' if op.in_place else ''}"
    lines += ["", f"Same as {same}.", "", *example(op)]
    return "\n".join(lines) + "\n"


def _docstring_of_layout(op: Op) -> str:
    moves = op.name in ("reshape_", "contiguous_")
    alias = f" Alias of :func:`{op.alias_of}`." if op.alias_of else ""
    notes = [f"Note: {op.notes[0]}", *(f"    {note}" for note in op.notes[1:])] if op.notes else []
    source = "own kernels for plain CPU and CUDA tensors, else torch" if moves else "torch"
    like = f":func:`{op.like}`, in place" if op.like else f":meth:`torch.Tensor.{op.name}`"
    return (
        "\n".join(
            [
                f"{op.what}, in place.{alias}",
                "",
                f"Formula: {op.formula}.",
                "Shapes: any; ``input`` is the same object afterwards, in the same storage.",
                "Dtypes: any.",
                "Maximum error: 0 ulp; elements are moved, if at all.",
                *notes,
                "Returns: ``input`` itself.",
                "Errors, each raised before anything is changed:",
                *(f"    {error}" for error in (*op.errors, _TYPE_ERROR, _AUTOGRAD_ERROR)),
                *([f"    {_OVERLAP_ERROR}"] if moves else []),
                f"Source: {source}.",
                "",
                f"Same as {like}.",
                "",
                *example(op),
            ]
        )
        + "\n"
    )


def example(op: Op) -> list[str]:
    lists = r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
    arguments = re.sub(lists, r"torch.tensor(\g<0>)", op.example)
    suffix = ""
    if op.dtypes.startswith("float64"):
        arguments = arguments.replace("])", "], dtype=torch.float64)", 1)
        suffix = ", dtype=torch.float64"
    return [f">>> ie.{op.name}({arguments})", f"tensor({op.result}{suffix})"]
