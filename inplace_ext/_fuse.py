"""``fuse``: a chain of in-place operations in one pass over memory.

A function is traced with stand-ins for its arguments, which write down what is done to them. What they wrote
is bound to the arguments of each call by the compiled module (``csrc/bindings/fuse.cpp``), with the checks of
the operations themselves, and run as one program. What does not fit runs as it is written.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import torch
from torch.overrides import TorchFunctionMode

from inplace_ext import _added, _compile, _native, _ops
from inplace_ext._added import AddedOp
from inplace_ext._table import ALL_OPS, OPS, RANDOM

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGES = (os.path.dirname(__file__), os.path.dirname(torch.__file__))
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


#: Kinds of arguments of one function that are kept: more hang on numbers that change in each call.
_MAX_TRACES = 64


class FuseError(RuntimeError):
    """A function cannot be fused: it reads data, or does what is not elementwise. Nothing was changed."""


class _Unfused(Exception):
    """The function is in order, but not for the kernels: it runs as it is written."""


# ---- where in the user's code -----------------------------------------------------------------------------


def _place() -> str:
    """The line of the function that called into torch or this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back
    file, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(file, number).strip()
    line = line if len(line) <= 80 else f"{line[:77]}..."
    return f"{os.path.basename(file)}:{number}" + (f": `{line}`" if line else "")


def _refuse(what: str) -> FuseError:
    return FuseError(f"{what} ({_place()})")


# ---- numbers ----------------------------------------------------------------------------------------------


class _Misused(Exception):
    """A number among the arguments was used in a way that tracing cannot follow."""


class _Number(float):
    """A number among the arguments, or what is computed from one. As a float it is NaN.

    A float, so that torch takes it for a number, and that it comes first where a float is on the left. What
    reads its value past Python's operators (``math.sqrt``) gets a NaN, which gives it away.
    """

    _tracer: _Tracer
    _node: int
    #: What it is in the call at hand.
    _value: int | float

    def _binary(self, name: str, other: object, swapped: bool = False) -> Any:
        if isinstance(other, _Number):
            node, value = other._node, other._value
        elif isinstance(other, (int, float)) and not isinstance(other, bool):
            node, value = self._tracer.constant(other), other
        else:
            return NotImplemented
        sides = (self._node, node), (self._value, value)
        (a, b), (x, y) = (side[::-1] if swapped else side for side in sides)
        return self._tracer.number((name, a, b), _ARITHMETIC[name](x, y))

    def _compare(self, name: str, other: object) -> Any:
        result = self._binary(name, other)
        return result if result is NotImplemented else self._tracer.guard(result)

    def __neg__(self) -> Any:
        return self._tracer.number(("neg", self._node, self._node), -self._value)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __bool__(self) -> bool:
        return bool(self._compare("ne", 0))

    def __hash__(self) -> int:
        raise _Misused

    def __int__(self) -> int:
        raise _Misused

    def __float__(self) -> float:
        raise _Misused

    def __round__(self, *_: Any) -> Any:
        raise _Misused

    def __trunc__(self) -> int:
        raise _Misused

    def __index__(self) -> int:
        raise _Misused

    def is_integer(self) -> bool:
        raise _Misused


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
for _operator in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(_Number, f"__{_operator}__", lambda self, other, name=_operator: self._binary(name, other))
    setattr(_Number, f"__r{_operator}__", lambda self, other, name=_operator: self._binary(name, other, True))
for _operator in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(_Number, f"__{_operator}__", lambda self, other, name=_operator: self._compare(name, other))


# ---- tensors ----------------------------------------------------------------------------------------------


class _Traced(torch.Tensor):
    """A stand-in for a tensor: its shape and dtype, and a tracer that hears of everything done to it."""

    _tracer: _Tracer
    _value: int
    _device: torch.device

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for item in _flat((args, kwargs)):
            if isinstance(item, _Traced):
                return item._tracer.called(func, args, kwargs)
        raise AssertionError(func)


def _recorded(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of this package that has been given a stand-in."""
    if added := _added.by_kernel.get(name):
        return args[0]._tracer.change(added.name, added.change, list(args), dict(kwargs), added)
    return args[0]._tracer.operation(name, getattr(_ops, name), args, kwargs)


if _native.module is not None:
    _native.module.set_traced(_Traced, _recorded)


def _flat(item: Any) -> Iterator[Any]:
    if isinstance(item, (list, tuple)):
        for part in item:
            yield from _flat(part)
    elif isinstance(item, dict):
        yield from _flat(list(item.values()))
    else:
        yield item


# fmt: off
#: Operators, and functions that torch has under other names: what they are.
_ALIASES = {
    **{f"__{name}__": name
       for name in ("add", "sub", "mul", "pow", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge")},
    **{f"__i{name}__": f"{name}_" for name in ("add", "sub", "mul", "pow")},
    "__truediv__": "div", "__div__": "div", "__itruediv__": "div_", "__idiv__": "div_",
    "true_divide": "div", "__mod__": "remainder", "__imod__": "remainder_", "__radd__": "add",
    "__rmul__": "mul", "__rsub__": "rsub",
    "__rpow__": "rpow", "__rtruediv__": "rdiv", "__rdiv__": "rdiv", "__and__": "and", "__rand__": "and",
    "__or__": "or", "__ror__": "or", "__invert__": "not", "bitwise_and": "and", "bitwise_or": "or",
    "bitwise_not": "not", "logical_and": "and", "logical_or": "or", "logical_not": "not", "max": "maximum",
    "min": "minimum", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le",
    "not_equal": "ne",
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
#: Properties and methods that say what the tensor is, and whether they tell its shape.
_ASKED = {
    **dict.fromkeys(("shape", "size", "numel", "nelement", "nbytes", "stride", "__len__"), True),
    **dict.fromkeys(
        ("dtype", "device", "ndim", "dim", "layout", "is_floating_point", "is_complex", "requires_grad",
         "is_cuda", "is_cpu", "is_leaf", "is_sparse", "itemsize", "element_size", "is_contiguous", "is_meta",
         "is_quantized", "is_nested"), False),
}
_CASTS = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}
_READS = (
    "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__iter__", "__contains__",
    "__array__", "__complex__", "equal", "allclose", "is_nonzero", "data_ptr", "__format__", "__repr__",
)
#: Of which a trace would keep one outcome for ever.
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like",
           "randn_like", "randint_like", "dropout")
# fmt: on


@dataclass
class _Tracer:
    """Writes down what a function does."""

    #: With True numbers among the arguments are constants.
    by_value: bool
    nodes: list[tuple[Any, ...]] = field(default_factory=list)
    guards: list[tuple[int, bool]] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    captured: list[torch.Tensor] = field(default_factory=list)
    temporaries: int = 0
    reads_shape: bool = False
    #: What eager calls would read and write, in elements of their dtype: (bytes, calls).
    eager_bytes: int = 0
    eager_calls: int = 0

    # Values are numbered when the trace is done: captured tensors follow the arguments, then the temporaries.
    # Until then a value is ("a" | "c" | "t", index).

    def stand_in(self, tensor: torch.Tensor, value: tuple[str, int]) -> _Traced:
        with torch._C.DisableTorchFunctionSubclass():
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            traced: _Traced = torch.Tensor._make_subclass(_Traced, meta)
        traced._tracer, traced._value, traced._device = self, value, tensor.device  # type: ignore[assignment]
        return traced

    def number(self, node: tuple[Any, ...], value: int | float) -> _Number:
        self.nodes.append(node)
        number = _Number("nan")
        number._tracer, number._node, number._value = self, len(self.nodes) - 1, value
        return number

    def constant(self, value: object) -> int:
        self.nodes.append(("constant", value))
        return len(self.nodes) - 1

    def guard(self, number: _Number) -> bool:
        self.guards.append((number._node, bool(number._value)))
        return bool(number._value)

    # -- calls --

    def called(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A function of torch that has been given a stand-in."""
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            name = func.__self__.__name__
            if func.__name__ == "__set__":
                raise _refuse(f"setting {name} cannot be fused")
            if name == "data":
                return args[0]
        if name in _ASKED:
            return self.asked(name, func, args, kwargs)
        if name in _READS:
            raise _refuse(f"{name.strip('_')}() reads data, which a fused function never has")
        return self.operation(_ALIASES.get(name, name), func, args, kwargs)

    def asked(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.reads_shape = self.reads_shape or _ASKED[name]
        if name == "device":
            return args[0]._device
        if name in ("is_cuda", "is_cpu", "is_meta"):
            return args[0]._device.type == name[3:]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def evaluate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result that torch would give: of which shape and dtype, or the error."""

        def concrete(item: Any) -> Any:
            if isinstance(item, _Number):
                return item._value
            if isinstance(item, _Traced):
                return item.as_subclass(torch.Tensor)
            if isinstance(item, torch.Tensor):
                return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")
            if isinstance(item, (list, tuple)):
                return type(item)(map(concrete, item))
            return item

        with torch._C.DisableTorchFunction():
            return func(*map(concrete, args), **{key: concrete(item) for key, item in kwargs.items()})

    def evaluate_drawn(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The same of dropout, without drawing from a generator."""
        if "train" in kwargs:  # torch.dropout and torch.dropout_
            kwargs["training"] = kwargs.pop("train")
        seeded = dict(kwargs)
        if seeded.get("seed") is None:
            seeded["seed"] = 0
            seeded.pop("generator", None)
        result = self.evaluate(getattr(_ops, name), args, seeded)
        if name.rstrip("_") != "dropout":
            raise _Unfused(f"{name} has no form in a chain")
        return result

    def operation(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        args, kwargs = list(args), dict(kwargs)
        for key in ("input", "self", "condition"):
            if key in kwargs:
                args.insert(0, kwargs.pop(key))
        in_place = kwargs.pop("inplace", False)
        out = kwargs.pop("out", None)
        if name in ("detach", "requires_grad_", "contiguous"):
            return args[0]
        if name in _CASTS or name in ("to", "type", "type_as"):
            return self.cast(func, args, kwargs)
        if name in ("zeros_like", "ones_like", "full_like", "empty_like"):
            return self.filled(name, func, args, kwargs)
        if name == "clone":
            return self.temporary(args[0].dtype, args[0])
        if in_place and not name.endswith("_"):
            name += "_"
        if name.endswith("_") and not name.startswith("_"):
            return self.change(name, func, args, kwargs)
        result = self.new(name, func, args, kwargs)
        if out is None:
            return result
        return self.change("copy_", torch.Tensor.copy_, [out, result], {})

    def change(
        self, name: str, func: Any, args: list[Any], kwargs: dict[str, Any], added: AddedOp | None = None
    ) -> Any:
        op = added or ALL_OPS.get(name)
        if op is None or not (added or name in OPS or name in RANDOM):
            raise _refuse(f"{name} is not elementwise")
        target = args[0]
        if not isinstance(target, _Traced):
            raise _refuse(f"{name} changes a tensor that is not an argument")
        if name in RANDOM:
            self.evaluate_drawn(name, args, kwargs)
        else:
            form = func if added else getattr(torch.Tensor, name, None) or getattr(_ops, name)
            self.evaluate(form, args, kwargs)
        if op.kernel is None:
            raise _Unfused(f"{name} has no kernel of its own")
        names = op.parameter_names
        slots: dict[str, Any] = dict(zip(names, args, strict=False))
        if name == "copy_" and "other" in kwargs:
            kwargs["src"] = kwargs.pop("other")
        slots.update(kwargs)
        unknown = set(slots) - set(names)
        if unknown:
            raise TypeError(f"{name}() got an unexpected argument {unknown.pop()!r}")
        self.calls.append(("call", op.kernel, [self.slot(slots.get(key)) for key in names]))
        self.count(
            target, *[item for item in _flat(list(slots.values())[1:]) if isinstance(item, torch.Tensor)]
        )
        return target

    def slot(self, item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, torch.Tensor):
            return ("value", self.value(item))
        if isinstance(item, _Number):
            return ("number", item._node)
        if isinstance(item, float) and math.isnan(item) and not self.by_value:
            raise _Misused  # perhaps of a number among the arguments
        return ("object", item)

    def value(self, tensor: torch.Tensor) -> tuple[str, int]:
        if isinstance(tensor, _Traced):
            if tensor._tracer is not self:
                raise _refuse("a stand-in of another fused function is used")
            return tensor._value  # type: ignore[return-value]
        for i, known in enumerate(self.captured):
            if known is tensor:
                return ("c", i)
        if not _plain(tensor):
            raise _Unfused("a tensor outside of the arguments is not a plain CPU tensor")
        self.captured.append(tensor)
        return ("c", len(self.captured) - 1)

    def count(self, written: torch.Tensor, *read: torch.Tensor) -> None:
        """One eager call: it reads what it changes, and writes it."""
        with torch._C.DisableTorchFunctionSubclass():
            self.eager_bytes += 2 * written.nbytes + sum(t.nbytes for t in read)
        self.eager_calls += 1

    # -- new values --

    def added(self, op: AddedOp, args: Sequence[Any]) -> _Traced:
        """An operation of one's own, out of place."""
        result = self.evaluate(op.make, args, {})
        if op.kernel is None:
            raise _Unfused(f"{op.name} has no kernel of its own")
        tensors = [item for item in args if isinstance(item, torch.Tensor)]
        traced = self.create(result.dtype, tensors, result.shape)
        self.move(traced, args[0])
        operands = [self.slot(item) for item in args[1:]]
        self.calls.append(("call", op.kernel, [("value", traced._value), *operands]))
        self.count(traced, *tensors)
        return traced

    def create(self, dtype: torch.dtype, like: Sequence[torch.Tensor], shape: Sequence[int]) -> _Traced:
        if dtype not in _DTYPES:
            raise _Unfused(f"there are no kernels for {dtype}")
        self.temporaries += 1
        value = ("t", self.temporaries - 1)
        self.calls.append(("create", value[1], _name(dtype), [self.value(t) for t in like]))
        meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
        traced = self.stand_in(meta, value)
        # That of the first tensor which is no number on the CPU.
        devices = [item._device if isinstance(item, _Traced) else item.device for item in like]
        traced._device = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
        return traced

    def move(self, to: _Traced, source: Any) -> None:
        name = "copy_" if isinstance(source, torch.Tensor) else "fill_"
        self.calls.append(("call", name, [("value", to._value), self.slot(source)]))

    def temporary(self, dtype: torch.dtype, source: torch.Tensor) -> _Traced:
        """A new value that holds the source, converted."""
        with torch._C.DisableTorchFunctionSubclass():
            shape = source.shape
        traced = self.create(dtype, [source], shape)
        self.move(traced, source)
        return traced

    def retyped(self, traced: _Traced, dtype: torch.dtype) -> _Traced:
        index = traced._value[1]  # type: ignore[index]
        self.calls.append(("retype", index, _name(dtype)))
        with torch._C.DisableTorchFunctionSubclass():
            meta = torch.empty(traced.shape, dtype=dtype, device="meta")
        result = self.stand_in(meta, traced._value)  # type: ignore[arg-type]
        result._device = traced._device
        return result

    def cast(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        kwargs = {key: item for key, item in kwargs.items() if key not in ("device", "non_blocking", "copy")}
        rest = [item for item in args[1:] if isinstance(item, (torch.dtype, torch.Tensor))]
        other = next((item for item in (*rest, *args[1:]) if isinstance(item, (str, torch.device))), None)
        if isinstance(other, (str, torch.device)) and torch.device(other) != x._device:
            raise _refuse(f"{getattr(func, '__name__', func)} moves to another device")
        name = getattr(func, "__name__", "")
        dtype = _CASTS.get(name) or kwargs.get("dtype")
        for item in rest:
            dtype = item if isinstance(item, torch.dtype) else item.dtype
        if dtype is None or dtype == x.dtype:
            return x
        result = self.temporary(dtype, x)
        self.count(result, x)
        return result

    def filled(self, name: str, func: Any, args: list[Any], kwargs: dict[str, Any]) -> _Traced:
        result = self.evaluate(func, args, {k: v for k, v in kwargs.items() if k != "device"})
        value = {"zeros_like": 0, "ones_like": 1, "empty_like": 0}.get(name)
        if value is None:
            value = args[1] if len(args) > 1 else kwargs["fill_value"]
        traced = self.create(result.dtype, args[:1], result.shape)
        self.move(traced, value)
        return traced

    def new(self, name: str, func: Any, args: list[Any], kwargs: dict[str, Any]) -> _Traced:
        """An elementwise function out of place: the first operand in a new value, changed in place."""
        drawn = name + "_" in RANDOM
        known = drawn or name + "_" in OPS or name in ("where", "rsub", "rdiv", "rpow", "and", "or", "not")
        reduces = name in ("maximum", "minimum") and not any(
            isinstance(item, torch.Tensor) for item in [*args[1:], *kwargs.values()]
        )
        if not known or reduces:
            raise _refuse(f"{getattr(func, '__name__', name)} is not elementwise")
        result = self.evaluate_drawn(name, args, kwargs) if drawn else self.evaluate(func, args, kwargs)
        if not isinstance(result, torch.Tensor):
            raise _refuse(f"{name} does not give one tensor")
        dtype, shape = result.dtype, result.shape
        if dtype not in _DTYPES:
            raise _Unfused(f"there are no kernels for {dtype}")
        operands = [*args, *kwargs.values()]
        tensors = [item for item in operands if isinstance(item, torch.Tensor)]
        traced = self.written_out(name, dtype, shape, args, kwargs, tensors)
        self.count(traced, *tensors)
        return traced

    def written_out(
        self,
        name: str,
        dtype: torch.dtype,
        shape: Sequence[int],
        args: list[Any],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> _Traced:
        def start(first: Any, as_dtype: torch.dtype = dtype) -> _Traced:
            traced = self.create(as_dtype, tensors, shape)
            self.move(traced, first)
            return traced

        def then(traced: _Traced, op: str, *operands: Any) -> _Traced:
            self.calls.append(("call", op, [("value", traced._value), *map(self.slot, operands)]))
            return traced

        first = args[0]
        if name == "where":
            condition, a, b = (
                (*args, *kwargs.values()) if len(args) + len(kwargs) == 3 else (None, None, None)
            )
            if not isinstance(condition, torch.Tensor) or condition.dtype != torch.bool:
                raise _refuse("where() takes a bool tensor and what to choose from")
            return then(start(a), "where_", condition, b)
        if name == "rsub":
            alpha = kwargs.get("alpha", args[2] if len(args) > 2 else None)
            return then(start(args[1]), "sub_", first, alpha)
        if name == "rdiv":
            inverse = then(start(first), "reciprocal_")
            one = type(args[1]) in (int, float) and args[1] == 1
            return inverse if one else then(inverse, "mul_", args[1])
        if name == "rpow":
            return then(start(args[1]), "pow_", first)
        if name in ("and", "or", "not"):
            if any(item.dtype != torch.bool for item in tensors) or len(tensors) != len(args):
                raise _Unfused("bitwise and logical operations on numbers have no kernel of their own")
            if name == "not":
                return then(start(first), "eq_", False)
            return then(start(first), "mul_" if name == "and" else "add_", args[1])
        if name in _COMPARISONS:
            with torch._C.DisableTorchFunctionSubclass():
                other = args[1]._value if isinstance(args[1], _Number) else args[1]
                common = torch.result_type(first, other)
            return self.retyped(then(start(first, common), name + "_", args[1]), torch.bool)
        op = ALL_OPS[name + "_"]
        if op.kernel is None:
            raise _Unfused(f"{name} has no kernel of its own")
        names = op.parameter_names
        slots: dict[str, Any] = dict(zip(names, args, strict=False))
        slots.update(kwargs)
        if not isinstance(first, torch.Tensor):
            raise _refuse(f"{name}() of a number")
        return then(start(first), op.kernel, *(slots.get(key) for key in names[1:]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tracer_of(args: Sequence[Any]) -> _Tracer | None:
    """Whose stand-ins are among the arguments."""
    return next((item._tracer for item in args if isinstance(item, _Traced)), None)


def takes(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the kernels may take the tensors, as things are."""
    return _bare() and all(map(_plain, tensors))


def _plain(tensor: torch.Tensor) -> bool:
    """Whether the kernels may take the tensor: on a device of theirs, with nothing to record."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type in _native.devices
        and tensor.layout == torch.strided
        and tensor.dtype in _DTYPES
        and not (torch.is_grad_enabled() and tensor.requires_grad)
    )


# ---- fused functions --------------------------------------------------------------------------------------


class _Fused:
    """A function, its traces, and how it runs where they do not fit."""

    def __init__(self, function: Callable[..., Any], round_each: bool) -> None:
        self.function = function
        self.round_each = round_each
        owner = getattr(function, "__self__", None)
        self.name = type(owner).__name__ if owner is not None else getattr(function, "__name__", "function")
        self.signature = inspect.signature(function)
        kinds = {p.kind for p in self.signature.parameters.values()}
        if inspect.Parameter.VAR_KEYWORD in kinds:
            raise TypeError(f"fuse: {self.name} takes **kwargs; name the arguments")
        self.lock = threading.RLock()
        #: Signatures that run as they are written, and why.
        self.unfused: dict[Any, str] = {}
        self.core: Any = None
        self.call: Callable[..., Any] = lambda *args: self.fallback("eager", args)
        if _native.module is not None:
            self.core = _native.module.FusedCore(self.name, self.fallback)
            self.call = self.core.function()

    def positional(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments in the order of the parameters, with defaults."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: list[Any] = []
        for parameter in self.signature.parameters.values():
            value = bound.arguments[parameter.name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                given.extend(value)
            else:
                given.append(value)
        return tuple(given)

    def run(self, args: Sequence[Any]) -> Any:
        """The function as it is written."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        rest = list(args)
        for parameter in self.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(rest)
                rest = []
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords[parameter.name] = rest.pop(0)
            else:
                positional.append(rest.pop(0))
        return self.function(*positional, **keywords)

    def key(self, args: Sequence[Any]) -> Any:
        kinds: list[Any] = []
        for item in args:
            if isinstance(item, torch.Tensor):
                kinds.append((type(item), item.dtype, item.dim() == 0))
            elif type(item) in (int, float):
                kinds.append(type(item))
            else:
                kinds.append((type(item), item if item.__hash__ else id(item)))
        return tuple(kinds)

    def fallback(self, why: str, args: tuple[Any, ...]) -> Any:
        """Where the compiled module has no trace for the arguments, or none that it can run."""
        lists = [i for i, arg in enumerate(args) if _is_list(arg)]
        if lists:
            return self.each(lists, args)
        if not _bare():
            return why != "prepare" and self.run(args)
        tensors = [item for item in args if isinstance(item, torch.Tensor)]
        if not all(map(_plain, tensors)):
            return why != "prepare" and self.run(args)
        if why == "prepare":
            return self.prepare(args)
        if why == "trace" and self.core is not None and self.prepare(args):
            return self.call(*args)
        self.rehearse(args)
        return self.run(args)

    def prepare(self, args: tuple[Any, ...]) -> bool:
        """Adds a trace for the arguments; false where they run as the function is written."""
        key = self.key(args)
        with self.lock:
            if key in self.unfused:
                return False
            try:
                if self.core.traces() >= _MAX_TRACES:
                    raise _Unfused(f"there are more than {_MAX_TRACES} kinds of arguments")
                self.trace(args)
            except _Unfused as reason:
                self.unfused[key] = str(reason)
                return False
        return True

    def each(self, lists: Sequence[int], args: tuple[Any, ...]) -> Any:
        """The function as it is written, on each of the elements of the lists."""
        count = len(args[lists[0]])
        for i in lists:
            if len(args[i]) != count:
                raise ValueError(f"{self.name}: the lists have {count} and {len(args[i])} tensors")
        elements = [tuple(arg[e] if i in lists else arg for i, arg in enumerate(args)) for e in range(count)]
        if _bare():
            for element in elements:
                if all(_plain(item) for item in element if isinstance(item, torch.Tensor)):
                    self.rehearse(element)
        results = [self.run(element) for element in elements]
        # As the compiled module: the lists of which the function returns elements.
        if results[-1] is None:
            return None

        def owner(item: Any) -> Any:
            return next((args[i] for i, given in enumerate(elements[-1]) if given is item), item)

        last = results[-1]
        return tuple(map(owner, last)) if isinstance(last, (tuple, list)) else owner(last)

    def rehearse(self, args: Sequence[Any]) -> None:
        """Raises what the function would raise, before it has changed anything.

        On tensors without data, which tell shapes that do not fit, and on small ones with data, which tell
        the rest.
        """

        def meta(item: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")

        def small(item: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(item.is_inference()):
                return torch.ones([min(size, 2) for size in item.shape], dtype=item.dtype)

        generators = [torch.default_generator, *(item for item in args if isinstance(item, torch.Generator))]
        states = [generator.get_state() for generator in generators]
        try:
            for stand_in in (meta, small):
                given = [stand_in(item) if isinstance(item, torch.Tensor) else item for item in args]
                with contextlib.suppress(NotImplementedError):  # torch has no meta form of an operation
                    self.run(given)
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def trace(self, args: Sequence[Any]) -> None:
        """Adds a trace for arguments like these."""
        numbers = any(type(item) in (int, float) for item in args)
        by_value = self.traced(args, by_value=True)
        traced = by_value
        if numbers:
            # Once with numbers to be filled in and once with those at hand: where the two differ, the
            # function has used a number behind the tracer's back, and is traced anew for other numbers.
            try:
                symbolic = self.traced(args, by_value=False)
                if _same(symbolic, by_value, args):
                    traced = symbolic
            except (_Misused, TypeError, ValueError, OverflowError, FuseError, _Unfused):
                pass
        self.core.add_trace(traced)

    def traced(self, args: Sequence[Any], by_value: bool) -> dict[str, Any]:
        tracer = _Tracer(by_value)
        stand_ins: list[Any] = []
        for i, item in enumerate(args):
            if isinstance(item, torch.Tensor):
                # Of a tensor given twice too: the trace is for others as well.
                stand_ins.append(tracer.stand_in(item, ("a", i)))
            elif type(item) in (int, float) and not by_value:
                stand_ins.append(tracer.number(("argument", i), item))
            else:
                stand_ins.append(item)
        with _Closed(tracer), torch.no_grad():
            result = self.run(stand_ins)
        offset = {"a": 0, "c": len(args), "t": len(args) + len(tracer.captured)}

        def numbered(item: Any) -> Any:
            if isinstance(item, tuple) and len(item) == 2 and item[0] in offset and isinstance(item[1], int):
                return offset[item[0]] + item[1]
            if isinstance(item, tuple) and len(item) == 2 and item[0] == "value":
                return ("value", numbered(item[1]))
            return [numbered(part) for part in item] if isinstance(item, list) else item

        calls = [tuple(numbered(part) for part in call) for call in tracer.calls]
        return {
            "parameters": [self.parameter(item, tracer) for item in args],
            "captured": tracer.captured,
            "nodes": tracer.nodes,
            "guards": tracer.guards,
            "calls": calls,
            "temporaries": tracer.temporaries,
            "result": self.result(result, stand_ins),
            "round_each": self.round_each,
            "eager": (tracer.eager_calls, tracer.eager_bytes),
        }

    @staticmethod
    def parameter(item: Any, tracer: _Tracer) -> tuple[Any, ...]:
        if isinstance(item, torch.Tensor):
            return (
                "tensor",
                _name(item.dtype),
                item.dim() == 0,
                list(item.shape) if tracer.reads_shape else None,
            )
        if type(item) in (int, float) and not tracer.by_value:
            return ("number", type(item))
        return ("same", item)

    def result(self, result: Any, stand_ins: Sequence[Any]) -> Any:
        if result is None:
            return None
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        found: list[int] = []
        for item in items:
            at = next((i for i, known in enumerate(stand_ins) if known is item), None)
            if at is None or not isinstance(item, _Traced):
                raise FuseError(
                    f"{self.name} returns what is not one of its arguments: a fused function changes "
                    "tensors, and may return those"
                )
            found.append(at)
        return found if isinstance(result, (tuple, list)) else found[0]

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Prints the program that the call would run; changes nothing."""
        given = self.positional(args, kwargs)
        print(explanation(self, given))


def _is_list(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) > 0 and isinstance(item[0], torch.Tensor)


def _bare() -> bool:
    """No mode or transform stands between the caller and the kernels."""
    return not (
        torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


class _Closed(TorchFunctionMode):
    """While a function is traced: hears of calls without a stand-in, which would happen once and no more."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        traced = any(isinstance(item, _Traced) for item in _flat((args, kwargs or {})))
        if name in _RANDOM and not (traced and name + "_" in RANDOM):
            raise _refuse(f"{name}() would be drawn once, and not in each call")
        if not traced and name.endswith("_") and not name.startswith("__") and name in OPS:
            raise _refuse(f"{name} changes a tensor that is not an argument")
        return func(*args, **(kwargs or {}))


def _same(symbolic: dict[str, Any], by_value: dict[str, Any], args: Sequence[Any]) -> bool:
    """Whether two traces are one, with the numbers at hand filled in."""
    values: list[Any] = []
    for kind, *rest in symbolic["nodes"]:
        if kind == "argument":
            values.append(args[rest[0]])
        elif kind == "constant":
            values.append(rest[0])
        else:
            a, b = values[rest[0]], values[rest[1]]
            values.append(-a if kind == "neg" else _ARITHMETIC[kind](a, b))

    def filled(call: tuple[Any, ...]) -> tuple[Any, ...]:
        if call[0] != "call":
            return call
        slots = [
            ("object", values[s[1]]) if isinstance(s, tuple) and s[0] == "number" else s for s in call[2]
        ]
        return (call[0], call[1], slots)

    keys = ("result", "temporaries")
    return (
        [filled(call) for call in symbolic["calls"]] == by_value["calls"]
        and all(symbolic[key] == by_value[key] for key in keys)
        and len(symbolic["captured"]) == len(by_value["captured"])
        and all(
            a is b or (a.dtype == b.dtype and torch.equal(a, b))
            for a, b in zip(symbolic["captured"], by_value["captured"], strict=True)
        )
    )


def explanation(fused: _Fused, args: tuple[Any, ...]) -> str:
    """The program of a call, and what it saves, as text."""
    lines = [f"{fused.name}:"]
    tensors = [item for item in args if isinstance(item, torch.Tensor)]
    if fused.core is None:
        return lines[0] + " runs as it is written: there is no compiled module"
    if not all(map(_plain, tensors)) or not _bare():
        return lines[0] + " runs as it is written: gradients, modes, subclasses and other devices are torch's"
    try:
        traced = fused.traced(args, by_value=True)
        described = fused.core.describe(args)
        if described is None:
            with fused.lock:
                fused.trace(args)
            described = fused.core.describe(args)
    except _Unfused as reason:
        return f"{lines[0]} runs as it is written: {reason}"
    if isinstance(described, str):
        return f"{lines[0]} runs as it is written: {described}"
    passes, values = described
    names = list(fused.signature.parameters)
    label = {value: names[i] if i < len(names) else f"argument {i}" for i, value in reversed(values)}
    tensor_of = {value: args[i] for i, value in values}
    count = len(values)
    for i, tensor in enumerate(traced["captured"]):
        label.setdefault(count + i, f"captured {i}")
        tensor_of.setdefault(count + i, tensor)

    def shown(operand: Any) -> str:
        if isinstance(operand, tuple) and operand[0] == "d":
            return "draws"
        if isinstance(operand, tuple):
            return f"t{operand[1]}" if operand[0] == "r" else label.get(operand[1], f"tensor {operand[1]}")
        return f"{operand:.6g}" if isinstance(operand, float) else str(operand)

    moved = 0
    for number, (stages, used) in enumerate(passes, 1):
        lines.append(f"  pass {number} of {len(passes)}, {len(stages)} stages:")
        for name, *operands in stages:
            given = ", ".join(shown(item) for item in operands if item is not None)
            lines.append(f"    {name:<16}{given}".rstrip())
        written = {
            item[1]
            for name, item, _ in stages
            if name == "store" and isinstance(item, tuple) and item[0] == "t"
        }
        read = {
            item[1]
            for name, *operands in stages
            if name != "store"
            for item in operands
            if isinstance(item, tuple) and item[0] == "t"
        }
        for value, _ in used:
            size = tensor_of[value].nbytes if value in tensor_of else 0
            moved += size * ((value in written) + (value in read))
    calls, size = traced["eager"]
    lines.append(f"  {len(passes)} pass(es) over memory, {moved:,} bytes read and written")
    lines.append(f"  eager: {calls} passes, {size:,} bytes")
    return "\n".join(lines)


@overload
def fuse(function: F, /) -> F: ...
@overload
def fuse(*, round_each: bool = False) -> Callable[[F], F]: ...
def fuse(function: Any = None, /, *, round_each: bool = False) -> Any:
    """Makes a function of in-place operations run in one pass over memory.

    The function is called with stand-ins for its tensors once for each kind of arguments (their dtypes,
    which of them are numbers, and what else they are; twice where there are numbers), and what it does to
    them is written down: methods and operators of tensors, functions of ``torch``, ``torch.nn.functional``
    and this package. From then on a call runs that, with the tensors and numbers of the call, in one pass:
    each element is read once and written once, whatever the number of operations. Out-of-place operations
    give values that never reach memory.

    Args:
        function: takes tensors and numbers, changes some of the tensors, and returns nothing, or one or
            several of the tensors that it was given.
        round_each: float16 and bfloat16 values are rounded after each operation, as separate calls do.
            Without it they are computed in float32 and rounded once, at the end.

    Returns: a function of the same signature, with the method ``explain``, which takes the same arguments and
    prints the program.

    Lists: where some arguments are lists of tensors, all of one length, the function runs on their first
    elements, on their second ones and so on, in one call whose work is shared among the threads; the other
    arguments are the same for all. What it returns are the lists.

    Values: those of the separate calls; those of float16 and bfloat16 with one rounding. ``dropout_`` takes
    its seed from the generator at each call. Torch's own dropout is drawn as :func:`dropout_` draws where it
    is fused: other elements are kept than torch would keep.

    Errors, each raised before anything is written:
        FuseError: the function reads data (``if x.sum() > 0``, ``x.item()``), does what is not elementwise,
            or returns what is not one of its arguments. The message names the operation and the line.
        What the function itself would raise.

    Runs as it is written: with gradients to record, subclasses, modes, ``torch.func`` transforms, other
    devices and dtypes than the kernels take, operations without a kernel of their own, tensors of several
    shapes that are changed, and tensors that share memory; and under ``torch.compile``, which traces it.

    >>> @ie.fuse
    ... def normalize_(x, mean, std):
    ...     return x.sub_(mean).div_(std).clamp_(-3, 3)
    >>> normalize_(torch.tensor([1.0, 2.0, 9.0]), 1.0, 2.0)
    tensor([0.0000, 0.5000, 3.0000])
    """
    if function is None:
        return functools.partial(fuse, round_each=round_each)
    if not callable(function):
        raise TypeError(f"fuse: expected a function, got {type(function).__name__}")
    fused = _Fused(function, round_each)
    call = fused.call
    simple = len(fused.signature.parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != simple:
            args = fused.positional(args, kwargs)
        return call(*args)

    wrapper.explain = fused.explain  # type: ignore[attr-defined]
    _compile.register({wrapper: function})
    return wrapper


# ---- a chain as an object ---------------------------------------------------------------------------------


class Pipeline(torch.nn.Module):
    """A chain of in-place operations on one tensor, as an object: called, it changes the tensor in one pass.

    Each method named as an operation of this package gives a longer pipeline; tensors among the arguments
    become buffers, which move with the module and stay out of its state. A pipeline pickles, and goes where a
    module or a callable does: ``torch.nn.Sequential``, a transform of a data set, a worker of a DataLoader.

    Errors: AttributeError for a name that is no elementwise operation; TypeError for arguments that do not
    fit its signature; when it is called, what :func:`fuse` raises.

    >>> normalize = ie.Pipeline().sub_(1.0).div_(2.0).clamp_(-3, 3)
    >>> normalize
    Pipeline().sub_(1.0).div_(2.0).clamp_(-3, 3)
    >>> normalize(torch.tensor([1.0, 2.0, 9.0]))
    tensor([0.0000, 0.5000, 3.0000])
    """

    def __init__(self) -> None:
        super().__init__()
        #: (name, positional, keyword) of each operation; a tensor is a _Buffer.
        self._steps: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = ()
        self._fused: _Fused | None = None

    def __getattr__(self, name: str) -> Any:
        if name in OPS or name == "dropout_":
            return functools.partial(self._then, name)
        if name.endswith("_") and not name.startswith("_"):
            raise AttributeError(f"Pipeline: {name} is no elementwise operation of inplace_ext")
        return super().__getattr__(name)

    def _then(self, name: str, *args: Any, **kwargs: Any) -> Pipeline:
        try:
            inspect.signature(getattr(_ops, name)).bind(None, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"Pipeline: {name}{ALL_OPS[name].signature}: {error}") from None
        longer = Pipeline()
        for key, buffer in self.named_buffers():
            longer.register_buffer(key, buffer, persistent=False)

        def kept(item: Any) -> Any:
            if not isinstance(item, torch.Tensor):
                return item
            key = f"operand{len(longer._buffers)}"
            longer.register_buffer(key, item, persistent=False)
            return _Buffer(key)

        step = (name, tuple(map(kept, args)), {key: kept(item) for key, item in kwargs.items()})
        longer._steps = (*self._steps, step)
        return longer

    def _apply_steps(self, x: Any, *operands: Any) -> Any:
        buffers = dict(zip(self._buffers, operands, strict=True))

        def given(item: Any) -> Any:
            return buffers[item.key] if isinstance(item, _Buffer) else item

        for name, args, kwargs in self._steps:
            values = {key: given(item) for key, item in kwargs.items()}
            getattr(_ops, name)(x, *map(given, args), **values)
        return x

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            run = self._apply_steps
        else:
            if self._fused is None:
                self._fused = _Fused(self._apply_steps, round_each=False)
            run = self._fused.call
        result: torch.Tensor = run(input, *self._buffers.values())
        return result

    def explain(self, input: torch.Tensor) -> None:
        """Prints the program of a call; changes nothing."""
        _Fused(self._apply_steps, round_each=False).explain(input, *self._buffers.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}

    def __repr__(self) -> str:
        def shown(item: Any) -> str:
            if not isinstance(item, _Buffer):
                return repr(item)
            buffer = self._buffers[item.key]
            if buffer.numel() <= 4:
                return f"tensor({buffer.tolist()})"
            return f"<{_name(buffer.dtype)} tensor of shape {tuple(buffer.shape)}>"

        text = "Pipeline()"
        for name, args, kwargs in self._steps:
            given = [*map(shown, args), *(f"{key}={shown(item)}" for key, item in kwargs.items())]
            text += f".{name}({', '.join(given)})"
        return text


@dataclass(frozen=True)
class _Buffer:
    key: str
