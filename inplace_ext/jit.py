"""Compiling at run time: the package's own sources while they are worked on, and operations of one's own.

>>> softclip_ = ie.jit.elementwise("softclip_", "x / (1 + abs(x) / limit)", scalars=["limit"])
>>> softclip_(torch.tensor([-4.0, 0.0, 4.0]), 4.0)
tensor([-2.,  0.,  2.])
"""

from __future__ import annotations

import inspect
import keyword
import linecache
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inplace_ext import _added, _build, _compile, _fuse, _native, _toolchain
from inplace_ext._assign import assign
from inplace_ext._errors import explain
from inplace_ext._expression import FUNCTIONS, ExpressionError, compile_expression, cpp_name
from inplace_ext._forms import _saved
from inplace_ext._info import Info, info
from inplace_ext._table import ALL_OPS, FLOAT, INT

__all__ = ["ExpressionError", "elementwise", "load"]

_lock = threading.RLock()


# ---- the package's own sources ----------------------------------------------------------------------------


def load(
    verbose: bool = False,
    debug: bool = False,
    cuda: bool | None = None,
    *,
    ops: Iterable[str] | None = None,
) -> Info:
    """Compiles the kernels of ``csrc`` as they are now, and has the package use them from here on.

    For work on the kernels: edit, call it, try. Ninja compiles what an edit touches, for the instruction set
    in use alone, into the user's cache (``TORCH_EXTENSIONS_DIR``); other processes find it there. The
    functions, fused functions and operations of one's own stay, and run the new kernels; those of other
    instruction sets are left as they were.

    An edit to ``csrc/bindings`` or to the op table changes what calls the kernels, which a process has once:
    set ``INPLACE_EXT_JIT=1`` and start Python anew, and importing the package compiles all of it
    (``INPLACE_EXT_JIT=debug,verbose`` as with the arguments below), the CUDA kernels too where torch has CUDA
    and there is a toolkit (``INPLACE_EXT_CUDA=0`` leaves them out).

    CUDA kernels are compiled by nvcc for ``TORCH_CUDA_ARCH_LIST``, else for the devices that are here, else
    for 8.0 with PTX.

    Args:
        verbose: prints the commands and what the compiler says.
        debug: compiles with ``-O0 -g``, and with checks of the places that the kernels read and write, which
            end the process with a message where one is out of bounds. The CUDA kernels get line numbers for
            ``compute-sanitizer``, and stay optimised.
        cuda: whether to compile the CUDA kernels as well; by default, where they are in use and there is a
            toolkit to compile them.
        ops: names of operations of the table (``["tanh_"]``) whose loops and stages alone are compiled: for
            an edit to a functor, in seconds.

    Returns: :func:`info`, whose ``kernels`` and ``cuda_kernels`` name the libraries.

    Errors, after each of which the kernels are those of before:
        RuntimeError: the compiler fails, and what it said; there is no compiler; there is no compiled module
            (start Python with ``INPLACE_EXT_JIT=1``); the bindings are of another op table; or ``cuda=True``
            and torch is a build without CUDA, there is no nvcc, or it is of another major version.
        ValueError: a name in ``ops`` that has no kernels in the op table, or ``ops`` with ``cuda=True``; what
            is no compute capability in ``TORCH_CUDA_ARCH_LIST``.
    """
    if cuda and ops is not None:
        raise ValueError("jit.load: ops= compiles operations for the CPU alone; leave it or cuda=True out")
    if cuda and (missing := _build.missing_cuda()):
        if torch.version.cuda is None:
            missing += ", for which CUDA kernels are of no use; install one with CUDA"
        raise RuntimeError(f"jit.load: cuda=True, but {missing}")
    module = _native.module
    if module is None:
        raise RuntimeError(
            f"jit.load: the package runs without its compiled module ({_native.reason}); start Python with "
            "INPLACE_EXT_JIT=1, which compiles it when the package is imported"
        )
    capability = module.capability()
    with _lock:
        if ops is None:
            _toolchain.require_toolchain()
            path = _toolchain.build_kernels(capability, debug=debug, verbose=verbose)
            if cuda or (cuda is None and _native.cuda is not None and _build.missing_cuda() is None):
                # Where they are of another op table nothing has changed yet.
                library = _toolchain.build_cuda(debug=debug, verbose=verbose)
                _loaded("jit.load", _native.use_cuda_library, library)
            _loaded("jit.load", module.load_kernels, str(path))
            _native.replace_library(capability, path)
        else:
            names = [ops] if isinstance(ops, str) else list(ops)
            codes = {name: module.code_named(name) for name in names}
            if unknown := [name for name, code in codes.items() if code < 0]:
                raise ValueError(
                    f"jit.load: {unknown[0]} is no operation of csrc/include/inplace_ext/op_table.h"
                )
            paths = {}
            for name in names:
                source = _table_source(name)
                paths[name] = _toolchain.build_operation(
                    name, source, capability, debug=debug, verbose=verbose
                )
            for name, path in paths.items():
                _loaded("jit.load", module.load_operation, codes[name], str(path))
        module.let_stream(False)  # narrower kernels, if there are any, are not the new ones
    return info()


def _loaded(what: str, function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except RuntimeError as error:
        if "of another build" not in str(error):
            raise
        raise RuntimeError(
            f"{what}: the compiled module is of another op table or ABI than csrc; start Python with "
            "INPLACE_EXT_JIT=1, which compiles that as well"
        ) from None


_TABLE_SOURCE = """\
#include "operation.h"

namespace {
using namespace inplace_ext;
// The functor of the table's line.
#define INPLACE_EXT_FIND(NAME, FUNCTOR, FORM, TYPES, COST) \\
  if constexpr (Op::NAME == Op::@NAME@)                                  \
    return operation_kernels<FUNCTOR, Form::FORM, Types::TYPES, COST>(#NAME);
template <int = 0>
OpKernels found() {
  INPLACE_EXT_OPS(INPLACE_EXT_FIND)
}
} // namespace
INPLACE_EXT_EXPORT_OPERATION(found())
"""


def _table_source(name: str) -> str:
    return _TABLE_SOURCE.replace("@NAME@", name)


# ---- operations of one's own ------------------------------------------------------------------------------

#: Operands that a stage of a program holds beside the element.
_MAX_TENSORS, _MAX_OPERANDS = 2, 3
_FORMS = {
    (0, 0): "kUnary", (0, 1): "kNumber", (0, 2): "kNumbers", (0, 3): "kNumbers3",
    (1, 0): "kBinary", (1, 1): "kTernary", (1, 2): "kScaled", (2, 0): "kTernary", (2, 1): "kScaled",
}  # fmt: skip
_SHORT = dict(
    zip((*FLOAT, *INT), ("f16", "bf16", "f32", "f64", "u8", "i8", "i16", "i32", "i64"), strict=True)
)
_RESERVED = {"x", "input", "V", "T", "where", "isnan", "isinf", "isfinite", "pi", "e", "inf", "nan"}

Number = float | int


def elementwise(
    name: str,
    expression: str,
    *,
    tensors: Sequence[str] = (),
    scalars: Sequence[str] | Mapping[str, Number | None] = (),
    dtypes: Sequence[torch.dtype | str] = FLOAT,
    cost: int | None = None,
    doc: str | None = None,
    verbose: bool = False,
    debug: bool = False,
) -> Callable[..., torch.Tensor]:
    """Compiles an operation of one's own: a function that does what an expression says to each element.

    The function has what the operations of this package have: kernels for the dtypes, any strides,
    broadcasting operands, checks before the first write, and a place in fused functions. Where the kernels do
    not apply (autograd, ``torch.func``, subclasses, other devices and dtypes), and under ``torch.compile``,
    it is the same expression in torch's functions.

    Kernels for CUDA devices are compiled at the first call with CUDA tensors, by nvcc, where the package's
    own CUDA kernels are in use. A fused function that makes this first call runs it as it is written. Without
    nvcc, or where it fails, a warning says so once, and torch's functions do the work on such devices.

    The expression is one of Python, over the element ``x`` and the operands: numbers, ``+ - * / // % **``,
    comparisons, ``& | ~`` or ``and or not`` of conditions, ``a if condition else b``, the constants ``pi``,
    ``e``, ``inf`` and ``nan``, and the functions ``abs``, ``sign``, ``square``, ``relu``, ``min``, ``max``,
    ``clamp``, ``where``, ``isnan``, ``isinf``, ``isfinite``, ``reciprocal``, ``sqrt``, ``rsqrt``, ``exp``,
    ``exp2``, ``expm1``, ``log``, ``log2``, ``log10``, ``log1p``, ``sin``, ``cos``, ``tanh``, ``sigmoid``,
    ``erf``, ``silu``, ``mish``, ``gelu``, ``pow``, ``fmod``, ``remainder``, ``floor``, ``ceil``, ``trunc``,
    ``round``, ``frac`` and ``copysign``, with the meaning they have in torch. Lines of the form
    ``name = expression`` may come before it.

    It is compiled once, by the C++ compiler in seconds, and kept in the user's cache
    (``TORCH_EXTENSIONS_DIR``): the same call in another process takes milliseconds.

    Args:
        name: of the function. With a trailing underscore it changes ``input`` and returns it, else it returns
            a new tensor; inside a fused function that is a value in a register.
        expression: what an element becomes.
        tensors: names of operands that are tensors, which broadcast to ``input``, or numbers; two at most.
        scalars: names of operands that are numbers, or a dict of names and defaults (None for none). Three
            operands at most in all.
        dtypes: of ``input``, for which there are kernels: floating and integer ones. float16 and bfloat16 are
            computed in float32 and rounded once.
        cost: time per element in units of a multiplication, which sets how work is shared among threads; by
            default it is estimated.
        doc: what the documentation of the function says first.
        verbose: prints the commands and what the compiler says.
        debug: compiles with ``-O0 -g``.

    Returns: a function ``name(input, *tensors, *scalars)``.

    Errors:
        ExpressionError (a ValueError): the expression cannot be read, with a mark at the place.
        ValueError, TypeError: a name that will not do, or too many operands.
        RuntimeError: the compiler fails, and what it said; or a process has no more than 128 operations.

    Without a compiler or the compiled module one warning says so, and torch's functions do the work.

    >>> swish = ie.jit.elementwise("swish", "x * sigmoid(beta * x)", scalars={"beta": 1.0})
    >>> swish(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7311])
    """
    definition = _Definition(name, expression, tensors, scalars, dtypes, cost, doc)
    with _lock:
        known = _defined.get(definition.key(debug))
        if known is None:
            known = _define(definition, verbose, debug)
            _defined[definition.key(debug)] = known
            # Where it can be found by its name, so that it pickles.
            module = sys._getframe(1).f_globals.get("__name__", "inplace_ext.jit")
            known.function.__module__ = known.twin.__module__ = module
    return known.function if definition.in_place else known.twin


class _Definition:
    """The arguments of ``elementwise``, checked."""

    def __init__(
        self,
        name: str,
        text: str,
        tensors: Sequence[str],
        scalars: Sequence[str] | Mapping[str, Number | None],
        dtypes: Sequence[torch.dtype | str],
        cost: int | None,
        doc: str | None,
    ) -> None:
        for what, given in (("name", name), ("expression", text)):
            if not isinstance(given, str):
                raise TypeError(f"elementwise: {what} must be a str, not {type(given).__name__}")
        self.in_place = name.endswith("_")
        self.name = name.rstrip("_") + "_"
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name.endswith("__"):
            raise ValueError(f"elementwise: {name!r} is no name for an operation")
        if self.name in ALL_OPS:
            raise ValueError(f"elementwise: inplace_ext has an operation {self.name}; give another name")
        self.text, self.doc = inspect.cleandoc(text), doc
        self.tensors = self.names("tensors", tensors)
        self.scalars = self.names("scalars", scalars)
        self.operands = [*self.tensors, *self.scalars]
        self.defaults: list[Number | None] = [None] * len(self.tensors)
        for scalar in self.scalars:
            default = scalars[scalar] if isinstance(scalars, Mapping) else None
            if default is not None and type(default) not in (int, float):
                raise TypeError(f"{name}: the default of {scalar} must be a number, not {default!r}")
            self.defaults.append(default)
        required = [default is None for default in self.defaults]
        if required != sorted(required, reverse=True):
            raise ValueError(f"{name}: a scalar without a default follows one that has one")
        if len(set(self.operands)) < len(self.operands):
            raise ValueError(f"{name}: two operands have the same name")
        if len(self.tensors) > _MAX_TENSORS or len(self.operands) > _MAX_OPERANDS:
            raise ValueError(
                f"{name}: {len(self.tensors)} tensors and {len(self.scalars)} scalars; an operation takes "
                f"{_MAX_TENSORS} tensors and {_MAX_OPERANDS} operands beside input at most. Split it, and "
                "call the parts in a function under @ie.fuse."
            )
        self.dtypes = self.dtype_names(dtypes)
        integers = any(dtype in INT for dtype in self.dtypes)
        names = ["x", *self.operands]
        self.expression = compile_expression(name, self.text, names, integers)
        if cost is not None and (not isinstance(cost, int) or cost < 1):
            raise ValueError(f"{name}: cost must be a positive int, got {cost!r}")
        self.cost = cost if cost is not None else max(1, round(self.expression.cost))

    def names(self, what: str, given: Sequence[str] | Mapping[str, Any]) -> list[str]:
        if isinstance(given, str):
            raise TypeError(f"elementwise: {what} must be a list of names, not the str {given!r}")
        found = list(given)
        for item in found:
            if not isinstance(item, str):
                raise TypeError(f"elementwise: {what} must be names, not {type(item).__name__}")
            if not item.isidentifier() or keyword.iskeyword(item) or item.startswith("_"):
                raise ValueError(f"elementwise: {item!r} is no name for an operand")
            if item in _RESERVED or item in FUNCTIONS:
                raise ValueError(f"elementwise: {item} has a meaning in expressions; give another name")
        return found

    def dtype_names(self, given: Sequence[torch.dtype | str]) -> list[str]:
        wanted = {str(item).removeprefix("torch.") for item in ([given] if isinstance(given, str) else given)}
        unknown = wanted - _SHORT.keys()
        if unknown or not wanted:
            raise ValueError(
                f"{self.name}: dtypes must be some of {', '.join(_SHORT)}, "
                f"got {', '.join(sorted(unknown)) or 'none'}"
            )
        if wanted & {"float16", "bfloat16"}:
            wanted.add("float32")  # which they are computed in
        return [dtype for dtype in _SHORT if dtype in wanted]

    def key(self, debug: bool) -> tuple[Any, ...]:
        defaults = tuple((type(default), default) for default in self.defaults)
        parts = (tuple(self.tensors), tuple(self.scalars), defaults, tuple(self.dtypes))
        return (self.name, self.text, *parts, self.cost, self.doc, debug)

    @property
    def parameters(self) -> list[str]:
        return ["input", *(
            operand if default is None else f"{operand}={default!r}"
            for operand, default in zip(self.operands, self.defaults, strict=True)
        )]  # fmt: skip

    @property
    def typed_parameters(self) -> list[str]:
        """As :class:`Op` has them."""
        typed = [f"{item}: Tensor | Number" for item in self.tensors]
        for item, default in zip(self.scalars, self.defaults[len(self.tensors) :], strict=True):
            typed.append(f"{item}: Number" if default is None else f"{item}: Number = {default!r}")
        return typed

    @property
    def form(self) -> str:
        return _FORMS[len(self.tensors), len(self.scalars)]

    @property
    def functor(self) -> str:
        """The operation in C++, for CPU and device, and its line of a table."""
        types = " | ".join(f"bit_of(DType::{_SHORT[dtype]})" for dtype in self.dtypes)
        parameters = ", ".join(f"V {cpp_name(item)}" for item in ("x", *self.operands))
        body = "\n".join(f"    {line}" for line in self.expression.cpp.splitlines())
        return (
            '#include "inplace_ext/functors.h"\n\n'
            "namespace {\nusing namespace inplace_ext;\nstruct Functor {\n"
            f"  template <class V>\n  static IE_BOTH V apply({parameters}) {{\n"
            f"    using T [[maybe_unused]] = typename V::lane;\n{body}\n  }}\n}};\n}} // namespace\n"
            f'#define INPLACE_EXT_OWN(X) X("{self.name}", Functor, Form::{self.form}, Types({types}), '
            f"{self.cost})\n"
        )

    @property
    def source(self) -> str:
        """The library for the CPU."""
        end = (
            '#include "operation.h"\nINPLACE_EXT_EXPORT_OPERATION(INPLACE_EXT_OWN(INPLACE_EXT_KERNELS_OF))\n'
        )
        return self.functor + end

    @property
    def cuda_source(self) -> str:
        """The library for CUDA devices."""
        return self.functor + '#include "operation.cuh"\n'

    def docstring(self, name: str) -> str:
        in_place = name.endswith("_")
        what = self.doc or "An operation of one's own"
        lines = [f"{what}, {'in place' if in_place else 'in a new tensor'}.", ""]
        formula = "\n    ".join(self.text.splitlines())
        lines.append(f"Formula: {'x = ' if in_place else ''}{formula}, for each element x of ``input``.")
        if self.tensors and in_place:
            lines.append("Shapes: operands broadcast to ``input``, whose own shape never changes.")
        elif self.tensors:
            lines.append("Shapes: operands and ``input`` broadcast.")
        else:
            lines.append("Shapes: any; the shape of ``input`` never changes.")
        lines.append(f"Dtypes: {', '.join(self.dtypes)}; others through torch, where it has them.")
        if {"float16", "bfloat16"} & set(self.dtypes):
            lines.append("float16 and bfloat16 are computed in float32 and rounded once.")
        lines.append("Returns: ``input`` itself." if in_place else "Returns: a new tensor.")
        lines.append("Source: compiled by ``ie.jit.elementwise``, else torch's functions.")
        return "\n".join(lines) + "\n"


class _Defined:
    """An operation that has been added: its libraries and its functions."""

    function: Callable[..., torch.Tensor]
    twin: Callable[..., torch.Tensor]

    def __init__(self, definition: _Definition, verbose: bool, debug: bool) -> None:
        self.definition, self.verbose, self.debug = definition, verbose, debug
        self.code: int | None = None
        self.loaded: set[str] = set()
        #: Why there are no kernels.
        self.reason: str | None = None
        #: Whether CUDA devices have kernels; None while nobody has asked.
        self.on_cuda: bool | None = None

    def ensure(self) -> bool:
        """Has the kernels of the instruction set in use; true if they were not there before."""
        module, definition = _native.module, self.definition
        if module is None:
            self.reason = _native.reason
        if module is None or self.reason is not None or module.capability() in self.loaded:
            return False
        if module.capability() not in _build.capabilities():  # of a device that the tests emulate
            return False
        with _lock:
            capability = module.capability()
            wanted = {capability}
            if capability == "avx512" and definition.cost == 1 and definition.tensors:
                # What is bound by memory is left to narrower kernels.
                wanted |= {"avx2"} & set(module.loaded_capabilities())
            try:
                paths = {name: self.build(name) for name in sorted(wanted - self.loaded)}
            except _toolchain.NoToolchain as error:
                self.reason = str(error)
                return False
            if self.code is None:
                self.code = module.add_operation(
                    definition.name, len(definition.tensors), definition.defaults
                )
            for name, path in paths.items():
                _loaded(definition.name, module.load_operation, self.code, str(path))
                self.loaded.add(name)
        return True

    def build(self, capability: str) -> Path:
        name = self.definition.name.rstrip("_")
        source = self.definition.source
        return _toolchain.build_operation(name, source, capability, debug=self.debug, verbose=self.verbose)

    def ensure_on_cuda(self, args: Sequence[Any]) -> bool:
        """Has the kernels for CUDA devices, where they take these arguments; true if they were not there
        before."""
        if self.on_cuda is not None or self.code is None or _native.cuda is None or not args:
            return False
        tensors = [item for item in args if isinstance(item, torch.Tensor)]
        input = args[0]
        if not (isinstance(input, torch.Tensor) and input.is_cuda and _native.enabled()):
            return False
        if not (_fuse.takes(tensors) and _name_of(input.dtype) in self.definition.dtypes):
            return False
        with _lock:
            if self.on_cuda is None:
                self.on_cuda = self.load_on_cuda(self.code)
        return self.on_cuda

    def load_on_cuda(self, code: int) -> bool:
        name = self.definition.name
        if self.verbose:
            print(f"{name}: kernels for CUDA devices, at the first call with such a tensor", file=sys.stderr)
        try:
            path = _toolchain.build_cuda_operation(
                name.rstrip("_"), self.definition.cuda_source, debug=self.debug, verbose=self.verbose
            )
            assert _native.module is not None
            _loaded(name, _native.module.load_cuda_operation, code, str(path))
        except (RuntimeError, ValueError) as error:
            message = f"{name} goes through torch's functions on CUDA devices: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=5)
            return False
        return True


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_defined: dict[tuple[Any, ...], _Defined] = {}


def _define(definition: _Definition, verbose: bool, debug: bool) -> _Defined:
    defined = _Defined(definition, verbose, debug)
    defined.ensure()
    make, change = _torch_forms(definition)
    op = _added.AddedOp(
        definition.name,
        (", ".join(definition.typed_parameters),),
        formula=definition.text,
        dtypes=" ".join(definition.dtypes),
        ulp="that of its parts",
        code=defined.code,
        change=change,
        make=make,
    )
    _added.add(op)
    defined.function = _in_place(defined, op)
    defined.twin = _in_new_tensor(defined, op)
    _compile.register({defined.function: change, defined.twin: make})
    if defined.reason is not None:
        message = f"{definition.name} goes through torch's functions: {defined.reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return defined


def _in_place(defined: _Defined, op: _added.AddedOp) -> Callable[..., torch.Tensor]:
    def delegate(*args: Any, **kwargs: Any) -> torch.Tensor:
        # Another instruction set may have come into use since, or the first tensor on a device.
        if defined.ensure() or defined.ensure_on_cuda(args or (kwargs.get("input"),)):
            result: torch.Tensor = defined.function(*args, **kwargs)
            return result
        changed: torch.Tensor = op.change(*args, **kwargs)
        return changed

    doc = defined.definition.docstring(op.name)
    if op.kernel is not None and _native.module is not None:
        function: Callable[..., torch.Tensor] = _native.module.make_function(
            op.name, op.kernel, op.signature, doc, delegate, delegate, False, False
        )
        return function

    def fallback(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return delegate(*args, **kwargs)
        except Exception as error:
            explained = explain(error, op.name, args, kwargs)
            if explained is error:
                raise
            raise explained from error

    return _described(fallback, op.change, op.name, doc)


def _in_new_tensor(defined: _Defined, op: _added.AddedOp) -> Callable[..., torch.Tensor]:
    name = op.name.rstrip("_")
    signature = inspect.signature(op.make)

    def twin(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            traced = _fuse.tracer_of(bound.args)
            if traced is not None:
                value: torch.Tensor = traced.added(op, bound.args)
                return value
            out = _empty_result(defined, bound.args)
            if out is None:
                made: torch.Tensor = op.make(*bound.args)
                return made
            return defined.function(out, *bound.args[1:])
        except (RuntimeError, TypeError) as error:
            explained = explain(error, op.name, args, kwargs)
            if explained is error:
                raise
            raise explained from error

    return _described(twin, op.make, name, defined.definition.docstring(name))


def _empty_result(defined: _Defined, args: Sequence[Any]) -> torch.Tensor | None:
    """A copy of ``input`` in the shape of the result, to be changed; None where kernels do not apply."""
    input = args[0]
    tensors = [item for item in args if isinstance(item, torch.Tensor)]
    if not isinstance(input, torch.Tensor) or _native.module is None or not _native.enabled():
        return None
    if not (_fuse.takes(tensors) and _name_of(input.dtype) in defined.definition.dtypes):
        return None
    if any(item.dtype != input.dtype or item.device != input.device for item in tensors):
        return None
    if input.is_cuda and not (defined.on_cuda or defined.ensure_on_cuda(args)):
        return None
    if any(type(item) not in (int, float) for item in args[1:] if not isinstance(item, torch.Tensor)):
        return None
    shape = torch.broadcast_shapes(*(item.shape for item in tensors))
    return input.clone() if shape == input.shape else input.expand(shape).contiguous()


def _described(
    function: Callable[..., torch.Tensor], like: Callable[..., Any], name: str, doc: str
) -> Callable[..., torch.Tensor]:
    function.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


# ---- the same in torch's functions ------------------------------------------------------------------------


def _wide(value: torch.Tensor) -> torch.Tensor:
    """16-bit floats as float32, which they are computed in."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _number(value: Any, x: torch.Tensor) -> torch.Tensor:
    """A number as the kernels take it: of the dtype of x, where that has it."""
    dtype = x.dtype
    if isinstance(value, complex) and not dtype.is_complex:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    elif isinstance(value, (float, torch.SymFloat)) and not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    return torch.full((), value, dtype=dtype, device=x.device)


def _numbers(condition: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """1 where it holds, else 0."""
    return condition.to(x.dtype)


def _operand(name: str, value: Any, x: torch.Tensor, is_tensor: bool) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if is_tensor or value.dim() == 0:
            return _wide(value)
        raise TypeError(
            f"{name} must be a number, not a tensor of shape {tuple(value.shape)}; an operand among "
            "tensors= may be one"
        )
    if isinstance(value, (bool, int, float, complex, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _number(value, x)
    raise TypeError(f"{name} must be a {'tensor or a ' * is_tensor}number, not {type(value).__name__}")


def _tensor(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"input must be a torch.Tensor, not {type(value).__name__}")
    return value


def _result_dtype(input: torch.Tensor, *operands: Any) -> torch.dtype:
    dtype = input.dtype
    for operand in operands:
        # As torch promotes: a tensor without dims counts for less than one with some.
        if isinstance(operand, torch.Tensor) and (operand.dim() > 0 or input.dim() == 0):
            dtype = torch.promote_types(dtype, operand.dtype)
    return dtype


def _narrow(result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded once, where 16-bit floats were computed in float32."""
    return result.to(dtype) if dtype in (torch.float16, torch.bfloat16) else result


_HELPERS = {
    "torch": torch, "_assign": assign, "_saved": _saved, "_number": _number, "_numbers": _numbers,
    "_operand": _operand, "_tensor": _tensor, "_wide": _wide, "_result_dtype": _result_dtype,
    "_narrow": _narrow,
}  # fmt: skip


def _torch_forms(definition: _Definition) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """The operation in a new tensor and in place, in torch's functions: what its autograd sees."""
    name = definition.name.rstrip("_")
    statements, value = definition.expression.torch
    parameters = ", ".join(definition.parameters)
    tensors = ", ".join(["input", *definition.tensors])
    given = ", ".join(definition.operands)
    operands = [
        f"{item} = _operand({item!r}, {item}, x, {item in definition.tensors})"
        for item in definition.operands
    ]
    lines = ["x = _wide(_tensor(input))", f"dtype = _result_dtype({tensors})", *operands, *statements]
    body = "\n".join(f"    {line}" for line in [*lines, f"return _narrow({value}, dtype)"])
    source = (
        f"def {name}({parameters}):\n{body}\n\n"
        f"def {definition.name}({parameters}):\n"
        f"    return _assign(input, {name}(_saved(_tensor(input)), {given}))\n"
    )
    file = f"<{definition.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = dict(_HELPERS)
    exec(compile(source, file, "exec"), scope)
    return scope[name], scope[definition.name]
