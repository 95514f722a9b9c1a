"""What the tests share: layouts with canaries, special values, references, a check of the whole contract."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import inplace_ext as ie
from inplace_ext import _native, testing
from inplace_ext._delegate import torch_method
from inplace_ext._table import OPS as TABLE

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES = [*FLOATS, *INTS, torch.bool]
HALVES = (torch.float16, torch.bfloat16)
COMPLEX = [torch.complex64, torch.complex128]

UNARY = ["exp_", "sqrt_", "neg_", "relu_"]
BINARY = ["add_", "sub_", "mul_", "div_", "clamp_min_", "clamp_max_", "pow_"]
MOVES = ["fill_", "zero_", "copy_"]
#: Operations that stand for all: one of each form that the bindings and the executor tell apart.
OPS = [*BINARY, "clamp_", *UNARY, *MOVES]
#: The operations that have kernels of their own.
NATIVE = [name for name, op in TABLE.items() if op.native and not op.alias_of]
COMPARISONS = ["eq_", "ne_", "lt_", "le_", "gt_", "ge_"]

CAPABILITIES = testing.available_capabilities()
#: With INPLACE_EXT_TEST_EMULATED=1 the emulated device stands in their place, for `make emulate`.
EMULATED = os.environ.get("INPLACE_EXT_TEST_EMULATED", "0") not in ("", "0")
if EMULATED:
    import emulated

    emulated.library()
    torch.set_num_threads(1)
    CAPABILITIES = ["emulated"]
#: Everything that can carry out a call: each instruction set, and torch by delegation.
BACKENDS = [*CAPABILITIES, "torch"]

#: The backend of test_cuda.py, whose calls are given copies of the tensors on another device.
GPU = "gpu"


@dataclass
class Gpu:
    """Where the copies lie, and how last_path() begins: without a GPU that can be the emulated device."""

    device: str = "cuda"
    path: str = "cuda"


gpu = Gpu()

#: Bytes of the widest vector of any instruction set: tail lengths are counted in it.
VECTOR_BYTES = 64
MARGIN = 64

_active = CAPABILITIES[0] if CAPABILITIES else "torch"

for _name in CAPABILITIES if not EMULATED else []:
    with testing.use_capability(_name):  # loads it
        pass


@contextmanager
def backend(name: str) -> Iterator[str]:
    """Runs calls on an instruction set, or on torch."""
    global _active
    previous, _active = _active, name
    module = _native.module
    # testing.use_capability() looks for files each time, which is too slow for every call of a suite.
    if name == "torch":
        with testing.native_disabled():
            try:
                yield name
            finally:
                _active = previous
        return
    assert module is not None
    if name != GPU:
        module.use_capability(name)
    try:
        yield name
    finally:
        _active = previous
        if previous not in ("torch", GPU):
            module.use_capability(previous)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch.set_num_threads() for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if EMULATED else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


#: How the CPU runs what is elementwise, and how a device does: there are other reasons to tell them apart.
#: Where a device has nothing to do it says "loop", too.
PROGRAM_PATHS = ("loop", "staged", "blocked", "program", "move", "streaming", "mask_blocks")
DEVICE_PATHS = ("flat", "strided", "across", "wide", "listed")


def expect_path(suffix: str, where: object = "") -> None:
    """The last call took this path of the active backend: "loop", "staged", ..., or "torch"."""
    active = gpu.path if _active == GPU else _active
    if active in ("emulated", gpu.path) and suffix in PROGRAM_PATHS:
        taken = testing.last_path().removeprefix(f"{active}:")
        assert taken in (*DEVICE_PATHS, "loop", suffix), (testing.last_path(), where)
        return
    wanted = "torch" if "torch" in (suffix, active) else f"{active}:{suffix}"
    assert testing.last_path() == wanted, f"took {testing.last_path()}, expected {wanted} {where}"


def is_native() -> bool:
    return _active != "torch"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def form(name: str) -> Callable[..., torch.Tensor]:
    """Torch's own form of the operation: the method of that name, where there is one."""
    return torch_method(TABLE[name])


def allowed(name: str, dtype: torch.dtype) -> bool:
    """Whether torch has the operation in place for the dtype, with operands of the same dtype."""
    if dtype == torch.bool and name.startswith("clamp_"):
        return False  # only between tensors
    return dtype_name(dtype) in TABLE[name].dtype_names


def each(
    names: Sequence[str], dtypes: Sequence[torch.dtype] = DTYPES, refused: bool = False
) -> pytest.MarkDecorator:
    """Parametrizes a test over the operations and dtypes that torch allows, or over those that it refuses."""
    pairs = [(n, d) for n in names for d in dtypes if allowed(n, d) != refused]
    return pytest.mark.parametrize("name, dtype", pairs, ids=[f"{n}-{dtype_name(d)}" for n, d in pairs])


# ---- values -----------------------------------------------------------------------------------------------


def special_values(dtype: torch.dtype) -> torch.Tensor:
    """NaN, infinities, zeros, denormals, extremes and some ordinary numbers of a dtype."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype in INTS:
        info = torch.iinfo(dtype)
        values = [0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1]
        return torch.tensor([*values, *([-1, -2, -5] if info.min < 0 else [])], dtype=dtype)
    f = torch.finfo(dtype)
    denormal = f.smallest_normal * f.eps
    values = [0.0, 1.0, 0.5, 2.0, 3.0, 1.5, f.max, f.tiny, denormal, 5 * denormal, 7.25, float("inf")]
    return torch.tensor([*values, *(-v for v in values), float("nan")], dtype=torch.float64).to(dtype)


def make_data(n: int, dtype: torch.dtype, seed: int, specials: float = 0.15) -> torch.Tensor:
    """n random elements, a part of them special values."""
    g = torch.Generator().manual_seed(seed * 1000003 + n)
    if dtype == torch.bool:
        return torch.randint(0, 2, (n,), generator=g).bool()
    if dtype in INTS:
        low = 0 if dtype == torch.uint8 else -100
        data = torch.randint(low, 120, (n,), generator=g).to(dtype)
    elif dtype in FLOATS:
        data = (torch.randn(n, generator=g, dtype=torch.float64) * 3).to(dtype)
    else:
        return torch.randn(n, generator=g, dtype=dtype)
    special = special_values(dtype)
    mask = torch.rand(n, generator=g) < specials
    data[mask] = special[torch.randint(0, len(special), (int(mask.sum()),), generator=g)]
    return data


def without(data: torch.Tensor, *values: int) -> torch.Tensor:
    """Replaces values that an integer division must not meet."""
    for v in values:
        data[data == v] = 3
    return data


# ---- layouts ----------------------------------------------------------------------------------------------


def _dense(order: Sequence[int], shape: Sequence[int], inner: int = 1, pad: int = 0) -> list[int]:
    """Strides for dims laid out in `order`, innermost first."""
    strides, step = [0] * len(shape), inner
    for position, d in enumerate(order):
        strides[d] = step
        step *= max(shape[d], 1)
        if position == 0:
            step += pad
    return strides


def _layout(kind: str, shape: Sequence[int]) -> tuple[list[int], int]:
    """Strides and the offset from an aligned start."""
    rank = len(shape)
    c_order = list(range(rank))[::-1]
    if kind == "contiguous":
        return _dense(c_order, shape), 0
    if kind == "offset":
        return _dense(c_order, shape), 1
    if kind == "transposed":
        return _dense(c_order[::-1], shape), 3
    if kind == "channels_last":
        order = [1, *[d for d in c_order if d > 1], 0] if rank > 2 else c_order[::-1]
        return _dense(order, shape), 0
    if kind == "step":
        return _dense(c_order, shape, inner=2), 1
    if kind == "rows":
        return _dense(c_order, shape, pad=3), 2
    if kind == "transposed_rows":
        return _dense(c_order[::-1], shape, pad=5), 0
    raise ValueError(kind)


LAYOUTS = ["contiguous", "offset", "transposed", "channels_last", "step", "rows", "transposed_rows"]
#: Layouts whose elements fill their memory: one loop will do, whatever the order of the dims.
DENSE = ["contiguous", "offset", "transposed", "channels_last"]


def make(
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: str = "contiguous",
    seed: int = 0,
    specials: float = 0.15,
    data: torch.Tensor | None = None,
) -> torch.Tensor:
    """A tensor of a layout, inside a buffer with margins. `data` gives the elements in C order."""
    strides, offset = _layout(layout, shape)
    n = int(np.prod(shape, dtype=np.int64))
    extent = 1 + sum((s - 1) * t for s, t in zip(shape, strides, strict=True)) if n else 0
    margin = MARGIN // torch.empty(0, dtype=dtype).element_size()
    base = make_data(2 * margin + offset + extent, dtype, seed, specials)
    x = base.as_strided(list(shape), strides, margin + offset)
    if data is not None:
        x.copy_(data.reshape(list(shape)))
    return x


def clone_all(tensors: Sequence[Any], device: str = "cpu") -> list[Any]:
    """Copies with the same strides, offsets and sharing of storage. What is not a tensor stays."""
    storages: dict[int, torch.UntypedStorage] = {}
    made: dict[int, torch.Tensor] = {}
    out: list[Any] = []
    for t in tensors:
        if isinstance(t, torch.Tensor):
            if id(t) not in made:
                storage = t.untyped_storage()
                if storage.data_ptr() not in storages:
                    storages[storage.data_ptr()] = storage_bytes(t).to(device, copy=True).untyped_storage()
                copy = torch.empty(0, dtype=t.dtype, device=device)
                made[id(t)] = copy.set_(
                    storages[storage.data_ptr()], t.storage_offset(), t.size(), t.stride()
                )
            t = made[id(t)]
        out.append(t)
    return out


def clone_strided(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides and the same bytes around it."""
    copy: torch.Tensor = clone_all([x])[0]
    return copy


def storage_bytes(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def on_backend(call: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    """call(values) on the active backend: on a GPU with copies there, whose bytes and versions come back."""
    if _active != GPU:
        return call(list(values))
    copies = clone_all(values, gpu.device)
    pairs = [(v, c, c._version) for v, c in zip(values, copies, strict=True) if isinstance(v, torch.Tensor)]
    pointers = [copy.data_ptr() for _, copy, _ in pairs]
    try:
        result = call(copies)
    finally:
        for own, copy, version in pairs:
            storage_bytes(own).copy_(storage_bytes(copy))
            for _ in range(copy._version - version):
                torch.autograd.graph.increment_version(own)
        assert pointers == [copy.data_ptr() for _, copy, _ in pairs]
    return next((own for own, copy, _ in pairs if result is copy), result)


def bits(x: torch.Tensor) -> torch.Tensor:
    """The elements in C order as integers of the same width."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}[
        x.element_size()
    ]
    return x.detach().contiguous().view(width)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def matches(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise: the same bits, or NaN in both."""
    equal = bits(a) == bits(b)
    if a.dtype.is_complex:
        return torch.isclose(a, b, rtol=1e-5, atol=0, equal_nan=True)
    if a.dtype.is_floating_point:
        equal = equal.view(a.shape) | (a.isnan() & b.isnan())
    return equal.view(a.shape)


# ---- references -------------------------------------------------------------------------------------------

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype, _libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_libm.fmaf.restype, _libm.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3


def fused_multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c with one rounding, element by element by the C library."""
    f = _libm.fmaf if a.dtype == torch.float32 else _libm.fma
    a, b, c = torch.broadcast_tensors(a, b, c)
    columns = (t.reshape(-1).tolist() for t in (a, b, c))
    values = [f(u, v, w) for u, v, w in zip(*columns, strict=True)]
    return torch.tensor(values, dtype=torch.float64).to(a.dtype).reshape(a.shape)


@dataclass
class Expected:
    """What a call must do: raise, or leave for each element one of `values`, or be near `exact`."""

    error: type[Exception] | None = None
    version: int = 1
    values: list[torch.Tensor] = field(default_factory=list)
    torch: torch.Tensor | None = None
    exact: np.ndarray | None = None
    ulp: int = 0
    zero_sign: bool = True

    def wrong(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise: not as expected."""
        good = torch.zeros(x.shape, dtype=torch.bool)
        for value in self.values:
            good |= matches(x, value)
            if not self.zero_sign:
                good |= (x == 0) & (value == 0)
        if self.exact is not None:
            good |= torch.from_numpy(np.asarray(ulp_distance(x, self.exact) <= self.ulp)).reshape(x.shape)
        return ~good


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Maps the bits of floats to integers in the order of the numbers, one apart for neighbours."""
    low = np.iinfo(bits.dtype).min
    return np.where(bits < 0, low - bits, bits)


def ulp_distance(x: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """Distance of float32 or float64 from the correctly rounded value; huge for a zero of the wrong sign."""
    got = x.detach().contiguous().numpy()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = np.asarray(exact).astype(got.dtype)
    width = np.int32 if got.dtype == np.float32 else np.int64
    a, b = _ordered(got.view(width)), _ordered(np.ascontiguousarray(rounded).view(width).reshape(got.shape))
    # As float64, so that distances do not wrap; small ones stay exact.
    near = np.abs(a - b)
    far = np.abs(a.astype(np.float64) - b.astype(np.float64)) > 2**20
    distance = np.where(far, 2**31, near)
    nan_got, nan_rounded = np.isnan(got), np.isnan(rounded)
    distance = np.where(nan_got & nan_rounded, 0, np.where(nan_got ^ nan_rounded, 2**31, distance))
    wrong_zero = (got == 0) & (rounded == 0) & (np.signbit(got) != np.signbit(rounded))
    return np.where(wrong_zero, 2**31, distance)


def _wide(x: torch.Tensor) -> np.ndarray:
    """With at least 11 bits more than the dtype has."""
    if x.dtype == torch.float64:
        return x.contiguous().numpy().astype(np.longdouble)
    return x.contiguous().double().numpy()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _mish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.tanh(np.log1p(np.exp(x))))


def _softplus(x: np.ndarray, beta: float = 1, threshold: float = 20) -> np.ndarray:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta)


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    if approximate == "tanh":
        root = np.sqrt(2 / np.longdouble("3.14159265358979323846264338327950288"))
        return np.asarray(x * _sigmoid(2 * root * (x + np.longdouble("0.044715") * x * x * x)))
    return np.where(np.isinf(x), np.where(x > 0, x, np.nan), x * _by_mpmath(mpmath.ncdf, x))


def _elu(x: np.ndarray, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> np.ndarray:
    return np.where(x > 0, x * scale, np.expm1(x * input_scale) * alpha)


def _by_mpmath(f: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """An element at a time, with the bits of a long double."""
    x = np.clip(np.asarray(x), -1e4, 1e4)  # beyond which the functions are at their limits
    unique, inverse = np.unique(x, return_inverse=True)
    inverse = inverse.reshape(-1)
    with mpmath.workprec(100):
        values = [np.longdouble(mpmath.nstr(f(mpmath.mpf(float(v))), 25)) for v in unique]
    return np.array(values, dtype=np.longdouble)[inverse].reshape(x.shape)


#: Functions that are held to a bound in ulp, of numbers of a wider type.
TRANSCENDENTAL: dict[str, Callable[..., np.ndarray]] = {
    "exp_": np.exp,
    "exp2_": np.exp2,
    "expm1_": np.expm1,
    "log_": np.log,
    "log2_": np.log2,
    "log10_": np.log10,
    "log1p_": np.log1p,
    "sin_": np.sin,
    "cos_": np.cos,
    "tanh_": np.tanh,
    "sigmoid_": _sigmoid,
    "erf_": lambda x: np.copysign(_by_mpmath(mpmath.erf, x), x),
    "silu_": lambda x: x * _sigmoid(x),
    "mish_": _mish,
    "softplus_": _softplus,
    "gelu_": _gelu,
    "elu_": _elu,
    "celu_": lambda x, alpha=1: _elu(x, alpha, 1, 1 / alpha),
    "selu_": lambda x: _elu(x, 1.0507009873554804934 * 1.6732632423543772848, 1.0507009873554804934),
    "pow_": np.power,
}
#: Where the factors are rounded before they are used.
ULP = {"celu_": 3, "selu_": 3, "elu_": 3}


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(x.contiguous().numpy()))).reshape(x.shape)


def _number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def _float_reference(name: str, x: torch.Tensor, args: list[Any], kwargs: dict[str, Any]) -> Expected | None:
    """References of floating results that torch does not settle; None where torch does."""
    half = x.dtype in HALVES
    kwargs = dict(kwargs)
    args = args + [kwargs.pop(k) for k in ("other", "exponent") if k in kwargs]
    operands = [a for a in (*args, *(v for k, v in kwargs.items() if k in _OPERANDS)) if a is not None]
    tensors = [a for a in operands if isinstance(a, torch.Tensor) and a.dim() > 0]
    alpha = kwargs.get("alpha", 1)
    common = x.dtype
    for t in tensors:
        common = torch.promote_types(common, t.dtype)
    if not common.is_floating_point or name in MOVES or not x.dtype.is_floating_point:
        return None
    compute = torch.float32 if common in HALVES else common
    wide = x.to(compute)
    back = x.dtype

    def operand(value: Any, rounded: bool = False) -> torch.Tensor:
        """In the compute dtype; `rounded` through the dtype of the tensor first."""
        if not isinstance(value, torch.Tensor):
            value = value.item() if isinstance(value, np.generic) else value
            wide_number = isinstance(value, float) or abs(value) >= 2**63
            value = torch.tensor(
                float(value) if wide_number else value, dtype=torch.float64 if wide_number else None
            )
        if (rounded or value.dim() > 0) and common in HALVES:
            value = value.to(common)
        return value.to(compute)

    if name in TRANSCENDENTAL:
        numbers: list[Any] = [a for a in args if not isinstance(a, torch.Tensor)]
        if name == "pow_":
            exponent = operand(args[0], rounded=True)
            if not isinstance(args[0], torch.Tensor):
                e = float(exponent)
                simple: dict[float, Callable[[torch.Tensor], torch.Tensor]] = {
                    0.0: torch.ones_like,
                    1.0: lambda t: t,
                    2.0: lambda t: t * t,
                    3.0: lambda t: t * t * t,
                    0.5: _sqrt,
                    -0.5: lambda t: 1 / _sqrt(t),
                    -1.0: lambda t: 1 / t,
                    -2.0: lambda t: 1 / (t * t),
                }
                if e in simple:
                    return Expected(values=[simple[e](wide).to(back)])
            numbers = [_wide(exponent.expand(x.shape))]
        elif name != "gelu_":
            numbers = [float(torch.tensor(n, dtype=compute)) for n in numbers]
        with np.errstate(all="ignore"):
            exact = np.asarray(TRANSCENDENTAL[name](_wide(wide), *numbers, **kwargs))
        if back == compute:
            return Expected(exact=exact, ulp=ULP.get(name, 2))
        # Within 2 ulp of float32 (or float64), then rounded once.
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.asarray(exact).astype(np.float32 if compute == torch.float32 else np.float64)
        candidates = [torch.from_numpy(rounded).reshape(x.shape)]
        inf = torch.tensor(float("inf"), dtype=compute)
        for direction in (inf, -inf):
            t = candidates[0]
            for _ in range(ULP.get(name, 2)):
                t = torch.nextafter(t, direction)
                candidates.append(t)
        return Expected(values=[t.to(back) for t in candidates])
    if name in ("sqrt_", "rsqrt_"):
        return Expected(values=[(_sqrt(wide) if name == "sqrt_" else 1 / _sqrt(wide)).to(back)])
    if name == "addcmul_":
        first, second = (operand(a, rounded=True) for a in args)
        product = operand(kwargs.get("value", 1)) * first
        fused = fused_multiply_add(product, second, wide)
        return Expected(values=[fused.to(back), (wide + product * second).to(back)])
    if name == "addcdiv_":
        first, second = (operand(a, rounded=True) for a in args)
        return Expected(values=[(wide + operand(kwargs.get("value", 1)) * first / second).to(back)])
    if name in ("fmod_", "remainder_"):
        # Exact, as in C: torch's vector loop gives NaN where the quotient is huge.
        divisor = operand(args[0], rounded=True)
        with np.errstate(invalid="ignore"):
            mod = torch.from_numpy(np.asarray(np.fmod(*np.broadcast_arrays(wide.numpy(), divisor.numpy()))))
        if name == "remainder_":
            mod = torch.where((mod != 0) & ((divisor < 0) != (mod < 0)), mod + divisor, mod)
        return Expected(values=[mod.reshape(x.shape).to(back)])
    if name == "lerp_":
        end, weight = operand(args[0]), operand(args[1])
        near = weight.abs() < 0.5
        start, factor = torch.where(near, wide, end), torch.where(near, weight, weight - 1)
        fused = fused_multiply_add(factor, end - wide, start)
        return Expected(values=[fused.to(back), (start + factor * (end - wide)).to(back)])
    if name in ("add_", "sub_") and alpha != 1:
        other = operand(args[0], rounded=True)
        scale = operand(alpha, rounded=True)
        scale = -scale if name == "sub_" else scale
        fused = fused_multiply_add(other, scale, wide)
        return Expected(values=[fused.to(back), (wide + other * scale).to(back)])
    if half:
        if name in ("masked_fill_", "where_", "nan_to_num_"):
            return None  # torch has them in the dtype itself
        if not operands:
            return Expected(values=[form(name)(wide.clone(), **kwargs).to(back)])
        rounded = name in ("add_", "sub_", "remainder_", "fmod_", *COMPARISONS)
        converted = [None if a is None else operand(a, rounded) for a in args]
        keywords = {k: operand(v) if k in _OPERANDS and v is not None else v for k, v in kwargs.items()}
        keywords.pop("alpha", None)
        # Tensors without dims stand for numbers: expanded, they mean the same to torch.
        converted = [c if c is None else c.expand(x.shape) for c in converted]
        keywords = {k: v.expand(x.shape) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        if not name.startswith("clamp"):
            if name in ("threshold_", "leaky_relu_", "hardtanh_"):
                converted = [float(c) for c in (operand(a, rounded) for a in args)]
            return Expected(values=[form(name)(wide.clone(), *converted, **keywords).to(back)])
        value = form(name)(wide.clone(), *converted, **keywords).to(back)
        return Expected(values=[value], zero_sign=False)
    return None


_OPERANDS = ("other", "min", "max", "exponent", "value", "src")


def expected(name: str, x: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Expected:
    """What torch's method would do to x, with the exceptions that the contract makes."""
    copies = clone_all([x, *args, *kwargs.values()])
    t, targs, tkw = (
        copies[0],
        copies[1 : 1 + len(args)],
        dict(zip(kwargs, copies[1 + len(args) :], strict=True)),
    )
    version = t._version
    try:
        form(name)(t, *targs, **tkw)
    except Exception as error:
        return Expected(error=type(error))
    version = t._version - version
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    shared = any(a.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for a in operands)
    if shared:
        # The right value is that of the operands as they were before the call.
        args = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        kwargs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        t = clone_strided(x)
        form(name)(t, *args, **kwargs)
    zero_dims = x.dim() == 0 and any(a.dtype != x.dtype for a in operands)
    want = None if zero_dims or x.dtype not in FLOATS else _float_reference(name, x, list(args), kwargs)
    if want is None:
        want = Expected(values=[t])
    if name.startswith(("clamp", "maximum", "minimum")) and operands:
        want.zero_sign = False
    want.version, want.torch = version, t
    return want


# ---- the contract -----------------------------------------------------------------------------------------


def check(
    name: str, x: torch.Tensor, *args: Any, path: str | None = None, torch_too: bool = False, **kwargs: Any
) -> torch.Tensor:
    """Calls the operation on plain tensors and checks the whole contract against torch; returns x.

    Every instruction set gets the same bits to begin with and is held to the same reference; `torch_too` adds
    a call that is delegated. Without the compiled module, all calls are.
    """
    __tracebackhide__ = True
    want = expected(name, x, args, kwargs)
    saved, begin = storage_bytes(x).clone(), clone_strided(x)
    pointers = (x.data_ptr(), x.untyped_storage().data_ptr())
    layout = (x.shape, x.stride(), x.storage_offset())
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    others = [a for a in others if a.untyped_storage().data_ptr() != pointers[1]]
    others_saved = [(storage_bytes(a).clone(), a._version) for a in others]
    verified: torch.Tensor | None = None

    for where in CAPABILITIES + ["torch"] * (torch_too or not CAPABILITIES):
        what = (name, x.dtype, tuple(x.shape), x.stride(), [_describe(a) for a in args], kwargs, where)
        storage_bytes(x).copy_(saved)
        version = x._version
        error: Exception | None = None
        with backend(where):
            try:
                result = on_backend(
                    lambda v: getattr(ie, name)(
                        *v[: 1 + len(args)], **dict(zip(kwargs, v[1 + len(args) :], strict=True))
                    ),
                    [x, *args, *kwargs.values()],
                )
            except Exception as e:
                error = e
            if path is not None and error is None:
                expect_path(path, what)
        if error is not None or want.error is not None:
            assert type(error) is want.error, f"{error!r}, expected {want.error} {what}"
            assert torch.equal(storage_bytes(x), saved), f"written before the error {what}"
            assert x._version == version, f"version moved by an error {what}"
        else:
            assert result is x, what
            assert x._version - version == want.version, f"version moved by {x._version - version} {what}"
            delegated = testing.last_path() == "torch"
            if delegated or verified is None or not torch.equal(storage_bytes(x), verified):
                _check_values(want, x, begin, what, delegated)
                if not delegated:
                    verified = storage_bytes(x).clone()
        assert (x.data_ptr(), x.untyped_storage().data_ptr()) == pointers, what
        assert layout == (x.shape, x.stride(), x.storage_offset()), what
        for a, (contents, a_version) in zip(others, others_saved, strict=True):
            assert torch.equal(storage_bytes(a), contents) and a._version == a_version, (
                f"operand written {what}"
            )
    return x


def _check_values(
    want: Expected, x: torch.Tensor, begin: torch.Tensor, what: object, delegated: bool
) -> None:
    __tracebackhide__ = True
    values = [want.torch] if delegated and want.torch is not None else want.values
    if not values or not torch.equal(bits(x), bits(values[0])):
        wrong = ~matches(x, values[0]) if delegated else want.wrong(x)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            exact = [] if want.exact is None else [want.exact.reshape(tuple(x.shape))[at]]
            raise AssertionError(
                f"{int(wrong.sum())} of {x.numel()} wrong, first at {at}: {begin[at].item()!r} became "
                f"{x[at].item()!r}, expected {[v[at].item() for v in values] + exact} {what}"
            )
    # Nothing but the elements of x was written.
    restored = clone_strided(x).copy_(begin)
    assert torch.equal(storage_bytes(restored), storage_bytes(begin)), f"wrote outside {what}"


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        item = value.item() if value.dim() == 0 else ""
        return (dtype_name(value.dtype), tuple(value.shape), value.stride(), item)
    return value


def adam_(p: torch.Tensor, grad: torch.Tensor, first: torch.Tensor, second: torch.Tensor, lr: float) -> None:
    """A step of an optimizer, for fuse: several tensors are changed, and the gradient is read three times."""
    first.mul_(0.9).add_(grad, alpha=0.1)
    second.mul_(0.99).addcmul_(grad, grad, value=0.01)
    p.addcdiv_(first, second.sqrt() + 1e-8, value=-lr)


def operand_data(name: str, shape: Sequence[int], dtype: torch.dtype, seed: int, layout: str) -> torch.Tensor:
    """A tensor operand that the operation takes: no divisor that integers cannot be divided by."""
    x = make(shape, dtype, layout, seed)
    if dtype in INTS and name in ("div_", "pow_"):
        safe = without(x.clone(), *((0, -1) if dtype != torch.uint8 else (0,)))
        if name == "pow_":
            safe = safe.clamp(0, 9)
        x.copy_(safe)
    return x


def default_args(
    name: str, x: torch.Tensor, seed: int, layout: str = "contiguous"
) -> tuple[list[Any], dict[str, Any]]:
    """Operands of the shape and dtype of x for any operation."""
    if name in UNARY or name == "zero_":
        return [], {}
    if name == "fill_":
        return [make_data(1, x.dtype, seed)[0]], {}
    if name == "clamp_":
        return [make(x.shape, x.dtype, layout, seed + k) for k in (1, 2)], {}
    kwargs = {"rounding_mode": random.Random(seed).choice(["floor", "trunc"])} if name == "div_" else {}
    if name == "div_" and x.dtype in FLOATS and seed % 2:
        kwargs = {}
    return [operand_data(name, x.shape, x.dtype, seed + 1, layout)], kwargs


def scalar_args(name: str, dtype: torch.dtype, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Python numbers for any operation; those without a scalar form get none."""
    r = random.Random(seed)
    if name in UNARY or name == "zero_":
        return [], {}
    if dtype == torch.bool:
        return [r.choice([True, False])], {}
    if dtype in INTS:
        value: float = r.choice([2, 3, 5, 7])
    else:
        value = r.choice([2, 3.0, 0.1, -1.7, 1e-3, 11])
    if name == "clamp_":
        return [value - 1 if dtype != torch.uint8 else 1, value + 3], {}
    kwargs = {}
    if name == "div_":
        modes = ["floor", "trunc"] if dtype in INTS else ["floor", "trunc", None]
        kwargs = {"rounding_mode": r.choice(modes)}
    return [value], kwargs


def sample_calls(
    name: str, x: torch.Tensor, seed: int, layout: str = "contiguous"
) -> list[tuple[list[Any], dict[str, Any]]]:
    """Calls of any operation on x: with each kind of argument that it takes, tensors in the given layout."""
    integer = x.dtype in INTS
    is_bool = x.dtype == torch.bool

    def tensor(k: int, shape: Sequence[int] | None = None) -> torch.Tensor:
        data = make(x.shape if shape is None else shape, x.dtype, layout, seed + k)
        return (
            data.copy_(without(data.clone(), 0, *([-1] if x.dtype != torch.uint8 else [])))
            if integer
            else data
        )

    def mask(k: int, shape: Sequence[int] | None = None) -> torch.Tensor:
        return make(x.shape if shape is None else shape, torch.bool, layout, seed + k)

    row = x.shape[-1:]
    number: Any = True if is_bool else 3 if integer else 0.7
    if name in OPS:
        calls = [default_args(name, x, seed, layout)]
        return calls if name == "copy_" else [*calls, scalar_args(name, x.dtype, seed)]
    if name in (*COMPARISONS, "remainder_", "fmod_"):
        return [([tensor(1)], {}), ([number], {}), ([tensor(2, row)], {})]
    table: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {
        "maximum_": [([tensor(1)], {}), ([tensor(2, row)], {})],
        "masked_fill_": [
            ([mask(1), number], {}),
            ([mask(2, row), number], {}),
            ([mask(3), tensor(4, ())], {}),
        ],
        "where_": [([mask(1), tensor(2)], {}), ([mask(3), number], {}), ([mask(4, row), tensor(5, row)], {})],
        "addcmul_": [
            ([tensor(1), tensor(2)], {}),
            ([tensor(3), tensor(4)], {"value": 3 if integer else 0.3}),
            ([tensor(5, row), tensor(6)], {"value": 2}),
        ],
        "lerp_": [([tensor(1), w], {}) for w in (0.3, 0.8, 1.7, tensor(2))],
        "round_": [([], {})] if integer else [([], {}), ([], {"decimals": 1}), ([], {"decimals": -2})],
        "nan_to_num_": [([], {}), ([1.5, 2.0, -3.0], {}), ([], {"posinf": 1.0})],
        "threshold_": [([1, 7], {})] if integer else [([0.1, 7], {}), ([-1.5, 0.3], {})],
        "hardtanh_": [([0, 5], {})] if integer else [([], {}), ([-0.3, 2], {})],
        "leaky_relu_": [([], {}), ([0.2], {}), ([-1.5], {})],
        "elu_": [([], {}), ([0.7], {})],
        "celu_": [([], {}), ([0.7], {}), ([2.0], {})],
        "softplus_": [([], {}), ([2, 5], {}), ([0.5], {})],
        "gelu_": [([], {}), (["tanh"], {})],
    }
    table["minimum_"], table["addcdiv_"] = table["maximum_"], table["addcmul_"]
    return table.get(name, [([], {})])
