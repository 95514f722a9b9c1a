"""Docstrings of the operations, built from the op table."""

from __future__ import annotations

import re

from inplace_ext._table import ROWS, Op

_SHAPE_ERROR = "RuntimeError: the result of broadcasting has another shape than ``input``."
_CAST_ERROR = "RuntimeError: the result type cannot be cast to the dtype of ``input``."
_TYPE_ERROR = "TypeError: an argument is missing, unknown or of a wrong type."
_AUTOGRAD_ERROR = "RuntimeError: ``input`` is a leaf that requires grad, or an inference tensor."
_OVERLAP_ERROR = "RuntimeError: elements of ``input`` share memory, as after ``expand``."
_SHARED_ERROR = "RuntimeError: ``input`` and an operand share memory in part."


def docstring(op: Op) -> str:
    """The docstring of a public operation; its example runs as a doctest."""
    lines = [f"{op.what}, in place."]
    if op.alias_of:
        lines[0] += f" Alias of :func:`{op.alias_of}`."
    lines += ["", f"Formula: x = {op.formula}, for each element x of ``input``."]
    if op.takes_tensors:
        lines.append("Shapes: operands broadcast to ``input``, whose own shape never changes.")
    else:
        lines.append("Shapes: any; the shape of ``input`` never changes.")
    lines.append(f"Dtypes: {', '.join(op.dtype_names)}.")
    # Moves compute nothing, and what torch computes in is torch's affair.
    computes = op.native and re.search(r"\bx\b", op.formula)
    rounding = "; float16 and bfloat16 are computed in float32 and rounded once" if computes else ""
    lines.append(f"Maximum error: {op.ulp}{rounding}.")
    lines += [f"Note: {op.notes[0]}", *(f"    {note}" for note in op.notes[1:])] if op.notes else []
    lines.append("Returns: ``input`` itself.")
    lines.append("Errors, each raised before anything is written:")
    errors = [*op.errors, _TYPE_ERROR]
    if op.takes_tensors:
        # Along a dim the only tensor beside input is a mask, which is read as it is.
        errors += [_SHAPE_ERROR] if op.name in ROWS else [_CAST_ERROR, _SHAPE_ERROR]
    errors.append(_AUTOGRAD_ERROR)
    if op.name not in ("fill_", "zero_"):
        errors.append(_OVERLAP_ERROR)
        if op.takes_tensors and op.name not in ROWS:
            errors.append(_SHARED_ERROR)
    lines += [f"    {error}" for error in errors]
    if op.kernel:
        lines.append(f"Source: own kernel ``{op.kernel}`` for real CPU tensors without autograd, else torch.")
    else:
        lines.append("Source: torch.")
    same = f":func:`{op.like}`, in place" if op.like else f":meth:`torch.Tensor.{op.name}`"
    if op.name in ROWS:
        same = f":func:`{op.like}` of the scores, in place"
    lines += ["", f"Same as {same}.", "", *example(op)]
    return "\n".join(lines) + "\n"


def example(op: Op) -> list[str]:
    arguments = re.sub(r"\[[^\]]*\]", r"torch.tensor(\g<0>)", op.example)
    suffix = ""
    if op.dtypes.startswith("float64"):
        arguments = arguments.replace("])", "], dtype=torch.float64)", 1)
        suffix = ", dtype=torch.float64"
    return [f">>> ie.{op.name}({arguments})", f"tensor({op.result}{suffix})"]
