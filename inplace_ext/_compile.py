"""Gives Dynamo a Python form of the compiled functions: the torch method, which every backend knows.

Importing Dynamo takes seconds, so the forms are registered when something else imports it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Function = Callable[..., Any]

_DYNAMO = "torch._dynamo"


#: What Dynamo is to be told once it is imported: functions and their forms.
_pending: list[tuple[Function, Function]] = []


def register(methods: Mapping[Function, Function]) -> None:
    """Has Dynamo trace each function as the form that it maps to; at once, or when Dynamo is imported."""
    _pending.extend(methods.items())
    _tell()


#: Functions that it may not look into, by the module that has them and their names there.
_opaque: list[tuple[ModuleType, str]] = []


def keep_out(module: ModuleType, name: str) -> None:
    """Has Dynamo break a graph at calls of a function of a module, and run the function as it is."""
    _opaque.append((module, name))
    _tell()


def _tell() -> None:
    if _DYNAMO in sys.modules:
        _substitute(importlib.import_module(_DYNAMO))  # waits for another thread's import to end
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(_DYNAMO, _substitute))


def _substitute(dynamo: ModuleType) -> None:
    while _opaque:
        module, name = _opaque.pop()
        setattr(module, name, dynamo.disable(getattr(module, name)))
    # torch.compiler.substitute_in_graph forwards to this one, but imports Dynamo, which may be under way.
    while _pending:
        function, method = _pending.pop()
        dynamo.substitute_in_graph(function)(_traceable(method))


def _traceable(method: Function) -> Function:
    def form(*args: Any, **kwargs: Any) -> Any:
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        return method(*args, **kwargs)

    return form


class _AfterImport(MetaPathFinder):
    """Calls ``action(module)`` once, when the module called ``name`` has been imported."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # The other finders know where it is; this one only looks on while they load it.
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
