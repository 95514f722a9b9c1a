"""What a benchmark case is: values to start from, sides that work on them, a check, and the bytes moved."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import machine

OURS = "inplace_ext"
TORCH = "torch"
COMPILE = "compile"
NUMPY = "numpy"
NUMEXPR = "numexpr"
#: The faster of two in-place scaling loops over as many bytes, which the harness measures beside each case.
LIMIT = "limit"

_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def parse_size(text: str) -> int:
    """Number of elements: ``"16"``, ``"4Ki"``, ``"1 Mi"``."""
    match = re.fullmatch(r"(\d+)\s*(|Ki|Mi|Gi)", text.strip())
    if match is None or int(match[1]) < 1:
        raise ValueError(f"size must be a number of elements such as 16, 4Ki or 1Mi, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """As :func:`parse_size` reads it, where it is a whole number of a unit."""
    for unit in ("Gi", "Mi", "Ki"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}"
    return str(size)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Side:
    """One provider's way to do the work of a case.

    ``call`` takes a tensor with fresh values, or what ``convert`` makes of it beforehand (an array, for
    NumPy), and changes it or returns the result.
    """

    provider: str
    call: Callable[[Any], object]
    convert: Callable[[torch.Tensor], Any] | None = None
    #: Works on one thread whatever the setting, and is left out of cases with more.
    single_threaded: bool = False
    #: Measured only where ``--provider`` names it: torch.compile takes seconds before its first call.
    on_request: bool = False


Check = Callable[[str, torch.Tensor, torch.Tensor], None]


@dataclass
class Work:
    """The sides of a case, ready to be called.

    With ``source``, a contiguous tensor, every call of a side is given ``view`` of a copy of it, in which no
    call has worked yet, and each side's result is compared with that of ``reference`` by ``check``. Without,
    the sides hold their own tensors, whose values may not drift, and ``verify`` compares them once.
    """

    sides: Sequence[Side]
    source: torch.Tensor | None = None
    view: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    #: Bytes that a call has to read and write; 0 where memory is not the subject.
    moved: int = 0
    reference: str = TORCH
    check: Check | None = None
    verify: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.source is None and self.verify is None:
            raise TypeError("Work: without a source there must be a verify, which checks the sides' results")


@dataclass(frozen=True)
class Case:
    """One line of a suite. ``prepare`` makes its :class:`Work`, and runs only where the case is selected."""

    suite: str
    name: str
    op: str
    dtype: torch.dtype
    size: int
    prepare: Callable[[], Work]
    layout: str = "contiguous"
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"

    def __str__(self) -> str:
        layout = "" if self.layout == "contiguous" else f", {self.layout}"
        threads = "" if self.threads == (1,) else f", {'/'.join(map(str, self.threads))} threads"
        return (
            f"{self.suite}: {self.name}, {format_size(self.size)} {dtype_name(self.dtype)}{layout}{threads}"
        )


@dataclass(frozen=True)
class Selection:
    """What is asked for; None stands for what a suite measures by default.

    A suite takes from it the dtypes, sizes and threads that it makes its cases for. ``quick`` asks for the
    few cases that tell a regression.
    """

    ops: Sequence[str] | None = None
    dtypes: Sequence[torch.dtype] | None = None
    sizes: Sequence[int] | None = None
    layouts: Sequence[str] | None = None
    threads: Sequence[int] | None = None
    device: str = "cpu"
    quick: bool = False

    def takes(self, case: Case) -> bool:
        return (
            (self.ops is None or any(op in (case.op, case.name) for op in self.ops))
            and (self.dtypes is None or case.dtype in self.dtypes)
            and (self.sizes is None or case.size in self.sizes)
            and (self.layouts is None or case.layout in self.layouts)
        )

    @property
    def thread_counts(self) -> tuple[int, ...]:
        return tuple(self.threads or (1,))

    def scaling(self) -> tuple[int, ...]:
        """The numbers of threads of a case that shows scaling: powers of two up to all cores."""
        if self.threads or self.quick or self.device != "cpu":
            return self.thread_counts
        return tuple(sorted({2**k for k in range(machine.cores().bit_length())} | {machine.cores()}))


@dataclass(frozen=True)
class Suite:
    """A named list of cases, made for a selection."""

    name: str
    what: str
    cases: Callable[[Selection], Iterable[Case]] = field(repr=False)

    def select(self, selection: Selection) -> list[Case]:
        return [case for case in self.cases(selection) if selection.takes(case)]


_TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 4e-3, torch.bfloat16: 3e-2}
#: Elements compared at a time: a comparison of whole large tensors costs more than what is measured.
_CHUNK = 1 << 18


def close(tolerance: float | None = None, within: float = 0.0) -> Check:
    """Equal up to ``tolerance``, relative and absolute, by dtype where None; or ``within`` a distance."""

    def check(provider: str, got: torch.Tensor, want: torch.Tensor) -> None:
        if got.shape != want.shape:
            raise AssertionError(f"{provider}: a result of shape {tuple(got.shape)}, not {tuple(want.shape)}")
        bound = _TOLERANCE.get(want.dtype, 0.0) if tolerance is None else tolerance
        got, want = got.reshape(-1), want.reshape(-1)
        for start in range(0, want.numel(), _CHUNK):
            a, b = got[start : start + _CHUNK].to(want.dtype), want[start : start + _CHUNK]
            if torch.equal(a, b) or torch.allclose(a, b, bound, bound, equal_nan=True):
                continue
            difference = (a.double() - b.double()).abs()
            if not bool((difference <= within).all()):
                raise AssertionError(
                    f"{provider}: {dtype_name(want.dtype)} results are off by up to {difference.max():.3g}"
                )

    return check


def compiled(call: Callable[..., object], on_request: bool = False) -> Side:
    """``torch.compile`` of what torch would do, in its steady state."""

    def first(x: torch.Tensor) -> object:
        torch._dynamo.reset()
        side.call = torch.compile(call)
        return side.call(x)

    side = Side(COMPILE, first, on_request=on_request)
    return side


def array_sides(
    dtype: torch.dtype,
    operands: Sequence[object] = (),
    numpy: Callable[..., object] | None = None,
    numexpr: str | None = None,
    constants: dict[str, float] | None = None,
    on_request: bool = False,
) -> list[Side]:
    """NumPy's and numexpr's sides, where they are installed and know the dtype.

    ``numpy`` takes the array and the operands, and works in it. ``numexpr`` is an expression of ``x``, of the
    operands as ``a``, ``b``, ... and of ``constants``; numbers have the array's type in it. Both are measured
    on one thread: numexpr's pool of threads and OpenMP's get in each other's way in one process.
    """
    sides = []
    if numpy is not None and dtype != torch.bfloat16:
        arrays = [o.numpy() if isinstance(o, torch.Tensor) else o for o in operands]
        sides.append(Side(NUMPY, lambda x: numpy(x, *arrays), torch.Tensor.numpy, True, on_request))
    engine = optional("numexpr")
    if numexpr is not None and engine is not None and dtype in (torch.float32, torch.float64):
        typed = torch.empty(0, dtype=dtype).numpy().dtype.type
        names = dict(zip("abcdefgh", operands, strict=False)) | (constants or {})
        values = {k: v.numpy() if isinstance(v, torch.Tensor) else typed(v) for k, v in names.items()}

        def evaluate(x: Any) -> object:
            values["x"] = x
            return engine.evaluate(numexpr, local_dict=values, global_dict={}, out=x)

        sides.append(Side(NUMEXPR, evaluate, torch.Tensor.numpy, True, on_request))
    return sides


def optional(name: str) -> Any:
    """A module of the ``bench`` extra, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
