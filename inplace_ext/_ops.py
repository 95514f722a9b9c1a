"""The public operations, made from the op table. Their types are in ``_ops.pyi``, which is generated."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from inplace_ext import _compile, _native
from inplace_ext._delegate import always_guarded, delegate, is_division, torch_method
from inplace_ext._docs import docstring
from inplace_ext._errors import explain
from inplace_ext._table import ALL_OPS, Op


def _fallback(op: Op) -> Callable[..., Any]:
    """A public function for use without the compiled module."""
    method, guarded, name = torch_method(op), delegate(op), op.name

    def function(*args: Any, **kwargs: Any) -> Any:
        # torch's methods take the tensor as self, by position only.
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if torch.compiler.is_compiling():
            return method(*args, **kwargs)
        try:
            return guarded(*args, **kwargs)
        except Exception as exc:
            explained = explain(exc, name, args, kwargs)
            if explained is exc:
                raise
            raise explained from exc

    signature: dict[str, Any] = {}
    exec(f"def {name}{op.signature}: ...", signature)
    function.__signature__ = inspect.signature(signature[name])  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    function.__module__ = "inplace_ext"
    function.__doc__ = docstring(op)
    return function


def _make(op: Op) -> Callable[..., Any]:
    if _native.module is None:
        return _fallback(op)
    function: Callable[..., Any] = _native.module.make_function(
        op.name,
        op.kernel,
        op.signature,
        docstring(op),
        torch_method(op),
        delegate(op),
        is_division(op),
        always_guarded(op),
    )
    return function


_functions = {name: _make(op) for name, op in ALL_OPS.items()}
globals().update(_functions)
__all__ = list(_functions)

if _native.module is not None:
    _native.module.set_error_hook(explain)
    # Dynamo traces the Python functions by itself.
    _compile.register({function: torch_method(ALL_OPS[name]) for name, function in _functions.items()})
