"""The engine: programs of many stages over several tensors, against the same operations one by one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import (
    BINARY,
    CAPABILITIES,
    DTYPES,
    EMULATED,
    FLOATS,
    INTS,
    LAYOUTS,
    UNARY,
    bits,
    clone_strided,
    dtype_name,
    expect_path,
    make,
    make_data,
    matches,
    on_backend,
    same_bits,
    special_values,
    storage_bytes,
    threads,
)

import inplace_ext as ie
from inplace_ext import _native, testing

pytestmark = [
    pytest.mark.skipif(not CAPABILITIES, reason="no compiled module"),
    pytest.mark.usefixtures("one_thread", "capability"),
]

COMPUTE = {
    "f32": torch.float32,
    "f64": torch.float64,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}
ROUND = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
Stages = list[tuple[Any, ...]]
BUILD = _native.module.build_info() if _native.module else {"program_limits": {}, "operations": {}}
LIMITS = BUILD["program_limits"]
#: Name of each operation of the table: number of operands, whether they must be numbers, compute types.
FORMS: dict[str, tuple[int, bool, list[str]]] = BUILD["operations"]


def run(compute: str, stages: Stages, tensors: Sequence[torch.Tensor], scalars: Sequence[float] = ()) -> None:
    assert _native.module is not None
    run_program = _native.module.run_program
    on_backend(lambda moved: run_program(compute, stages, moved, list(scalars)), tensors)


def _upper(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a > b, a, b)


def _lower(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a < b, a, b)


def _maximum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a != a, a, _upper(a, b))


def _minimum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a != a, a, _lower(a, b))


def _single(name: str) -> Callable[..., torch.Tensor]:
    """The public operation, which test_parity holds to torch: where torch has other values of its own."""

    def call(a: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(ie, name)(a.clone(), *operands)
        return result

    return call


def _add_scaled(a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.stack([ie.add_(x.clone(), y, alpha=k.item()) for x, y, k in zip(a, b, alpha, strict=True)])


def _number(t: torch.Tensor) -> Any:
    """What an operand that is a number holds in every element."""
    return t.reshape(-1)[0].item() if t.numel() else 1


def _with_numbers(name: str, **kwargs: Any) -> Callable[..., torch.Tensor]:
    return lambda a, *numbers: getattr(ie, name)(a.clone(), *map(_number, numbers), **kwargs)


def _addc(name: str) -> Callable[..., torch.Tensor]:
    return lambda a, b, c, value: getattr(ie, name)(a.clone(), b, c, value=_number(value))


def _compare(f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda a, b: f(a, b).to(a.dtype)


#: Every operation of the table, as functions of tensors of the compute dtype.
REFERENCE: dict[str, Callable[..., torch.Tensor]] = {
    "add_": torch.add,
    "sub_": torch.sub,
    "mul_": torch.mul,
    "div_": torch.div,
    "clamp_": lambda a, lo, hi: _lower(hi, _upper(lo, a)),
    "clamp_min_": lambda a, lo: _upper(lo, a),
    "clamp_max_": lambda a, hi: _lower(hi, a),
    "relu_": lambda a: _upper(torch.zeros_like(a), a),
    "div_trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "div_floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "addcmul_": _addc("addcmul_"),
    "addcdiv_": _addc("addcdiv_"),
    "square_": lambda a: a * a,
    "cube": lambda a: a * a * a,
    "reciprocal_": lambda a: 1 / a,
    "reciprocal_square": lambda a: 1 / (a * a),
    "round_places": lambda a, power: (a * power).round() / power,
    "round_tens": lambda a, power: (a / power).round() * power,
    "maximum_": _maximum,
    "minimum_": _minimum,
    "clamp_between": lambda a, lo, hi: _minimum(_maximum(a, lo), hi),
    "nan_to_num_": _with_numbers("nan_to_num_"),
    "masked_fill_": lambda a, mask, value: torch.where(mask != 0, value, a),
    "where_": lambda a, mask, other: torch.where(mask != 0, a, other),
    "eq_": _compare(torch.eq),
    "ne_": _compare(torch.ne),
    "lt_": _compare(torch.lt),
    "le_": _compare(torch.le),
    "gt_": _compare(torch.gt),
    "ge_": _compare(torch.ge),
    "logical_or": lambda a, b: ((a | b) != 0).to(a.dtype),
    "logical_and": lambda a, b: ((a != 0) & (b != 0)).to(a.dtype),
    "threshold_": lambda a, threshold, value: torch.where(a <= threshold, value, a),
    "leaky_relu_": lambda a, slope: torch.where(a > 0, a, a * slope),
    "elu_": lambda a, negative, positive, scale: torch.where(
        a > 0, a * positive, ie.expm1_(a * scale) * negative
    ),
    "softplus_": _with_numbers("softplus_"),
    "gelu_tanh": _with_numbers("gelu_", approximate="tanh"),
    "add_scaled": _add_scaled,
}
# The others are public and take their operands as they are.
REFERENCE |= {name: _single(name) for name in FORMS if name not in REFERENCE}
OPERANDS = {name: count for name, (count, _, _) in FORMS.items()}
UINT8_ONLY = {"logical_or", "logical_and"}
MASKED = ("masked_fill_", "where_")


def built(name: str, compute: str) -> bool:
    return compute in FORMS[name][2]


def interpret(
    compute: str, stages: Stages, tensors: Sequence[torch.Tensor], scalars: Sequence[float]
) -> list[torch.Tensor]:
    """The stages one by one over whole contiguous tensors; returns what each tensor holds in the end."""
    dtype = COMPUTE[compute]
    written = [name == "store" and b[0] == "t" and b[1] for name, b, *_ in stages]
    shape = tensors[next(w for w in written if w is not False)].shape
    state = [t.clone() for t in tensors]
    temporaries: dict[int, torch.Tensor] = {}
    a = torch.zeros(shape, dtype=dtype)

    def value(operand: tuple[str, int]) -> torch.Tensor:
        kind, index = operand
        if kind == "s":
            return (
                torch.tensor(scalars[index], dtype=torch.float64 if dtype.is_floating_point else None)
                .to(dtype)
                .expand(shape)
            )
        return (temporaries[index] if kind == "r" else state[index].to(dtype)).expand(shape).contiguous()

    for name, b, *rest in stages:
        if name == "load":
            a = value(b)
        elif name == "store":
            if b[0] == "r":
                temporaries[b[1]] = a
            else:
                state[b[1]] = a.to(state[b[1]].dtype)
        elif name == "round":
            a = a.to(ROUND[b]).to(dtype)
        elif name == "add_scaled":
            # One call for each distinct alpha; operands vary along the rows.
            (c,) = rest
            alpha = value(c)
            columns = [t.reshape(-1, 1) for t in (a, value(b))]
            if c[0] == "s":
                a = ie.add_(a.clone(), value(b), alpha=alpha.reshape(-1)[0].item() if alpha.numel() else 1)
            else:
                a = _add_scaled(*columns, alpha.reshape(-1)).reshape(shape)
        else:
            operands = [value(o) for o in (b, *rest) if o is not None]
            a = REFERENCE[name](a.contiguous(), *operands)
    return state


def check_program(
    compute: str,
    stages: Stages,
    tensors: Sequence[torch.Tensor],
    scalars: Sequence[float] = (),
    path: str | None = "program",
) -> None:
    __tracebackhide__ = True
    stored = {b[1] for name, b, *_ in stages if name == "store" and b[0] == "t"}
    want = interpret(compute, stages, tensors, scalars)
    before = [clone_strided(t) for t in tensors]
    versions = [t._version for t in tensors]
    run(compute, stages, tensors, scalars)
    if path is not None:
        expect_path(path, stages)
    for k, t in enumerate(tensors):
        what = f"tensor {k} ({t.dtype}, {tuple(t.shape)}, {t.stride()}) of {compute} {stages} {scalars}"
        assert t._version == versions[k] + (k in stored), f"version: {what}"
        wrong = ~matches(t, want[k])
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{int(wrong.sum())} of {t.numel()} wrong at {at}: {before[k][at].item()} "
                f"became {t[at].item()}, expected {want[k][at].item()}: {what}"
            )
        # Not written where not stored, and never beside the elements.
        outside = clone_strided(t).copy_(before[k])
        assert torch.equal(storage_bytes(outside), storage_bytes(before[k])), f"wrote outside: {what}"


T0, T1, T2, R0, R1 = ("t", 0), ("t", 1), ("t", 2), ("r", 0), ("r", 1)
S0, S1 = ("s", 0), ("s", 1)


# ---- a program of one stage is the operation --------------------------------------------------------------


PAIRS = (["s", "s"], ["t", "t"], ["s", "t"], ["t", "s"])


@pytest.mark.parametrize("name", sorted(FORMS))
def test_one_stage(name: str) -> None:
    """Each operation of the table in each compute type, with scalar and tensor operands: as a plain loop."""
    for compute, dtype in COMPUTE.items():
        if not built(name, compute):
            continue
        if name in UINT8_ONLY:
            dtype = torch.bool  # their plain loops; test_forms_that_no_public_operation_has runs the rest
        kinds = [[]] if OPERANDS[name] == 0 else [["s"], ["t"]] if OPERANDS[name] == 1 else list(PAIRS)
        if FORMS[name][1]:
            kinds = [["s"] * min(OPERANDS[name], 2)]
        for operands in kinds:
            for layout in ("contiguous", "step"):
                n = 67 if name == "add_scaled" else 600
                x = make((n,), dtype, layout, 1, specials=0)
                tensors, b_c = [x], []
                for k, kind in enumerate(operands):
                    b_c.append((kind, k if kind == "s" else len(tensors)))
                    if kind == "t":
                        y = make((n,), dtype, layout, 5 + k, specials=0)
                        if dtype in INTS:
                            y.copy_(y.clone().clamp(1, 5))
                        tensors.append(y)
                pads = [*b_c, None, None][:2] + [("s", 2)] * (OPERANDS[name] == 3)
                stages: Stages = [("load", T0, None), (name, *pads), ("store", T0, None)]
                # A mask that is no bool tensor is converted to one.
                loops = layout == "contiguous" and not (name in MASKED and operands[0] == "t")
                check_program(compute, stages, tensors, [2, 3, 5], path="loop" if loops else "staged")


CORNERS: list[tuple[str, Stages, list[Any], list[Any], list[Any]]] = [
    # compute, stages, tensors, what the first becomes unless the program is refused
    ("u8", [LOAD := ("load", ("t", 0), None), ("logical_or", ("t", 1), None), ("store", ("t", 0), None)],
     [0, 7, 2, 0], [9, 3, 0, 0], [1, 1, 1, 0]),
    ("u8", [LOAD, ("logical_and", ("t", 1), None), ("store", ("t", 0), None)],
     [0, 7, 2, 0], [9, 3, 0, 0], [0, 1, 0, 0]),
    ("f32", [LOAD, ("round", "f64", None), ("store", ("t", 0), None)], [1.5, 2.5], [1.0, 1.0], [1.5, 2.5]),
]  # fmt: skip


def test_forms_that_no_public_operation_has(capability: str) -> None:
    """In a process of its own, which a form that is missing from the tables would crash."""
    if EMULATED:
        pytest.skip("its process loads the libraries of the CPU alone")
    if capability != CAPABILITIES[0]:
        pytest.skip("the first one runs all")
    code = f"""
import torch
from inplace_ext import _native, testing
for capability in {CAPABILITIES!r}:
    for compute, stages, first, second, want in {CORNERS!r}:
        dtype = {{"u8": torch.uint8, "f32": torch.float32}}[compute]
        x, y = torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)
        print("last:", capability, compute, stages, flush=True)
        with testing.use_capability(capability):
            try:
                _native.module.run_program(compute, stages, [x, y], [])
            except ValueError:
                assert x.tolist() == first
            else:
                assert x.tolist() == want, x
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stdout.splitlines()[-1:], done.stderr[-2000:])


@pytest.mark.parametrize("name", [*BINARY, "clamp_", *UNARY])
def test_one_stage_is_the_public_operation(name: str) -> None:
    for dtype, compute in ((torch.float32, "f32"), (torch.float16, "f32"), (torch.float64, "f64")):
        for layout in LAYOUTS:
            x = make((9, 75), dtype, layout, 3)
            count = {"clamp_": 2}.get(name, 0 if name in UNARY else 1)
            operands = [make((9, 75), dtype, "offset", k, specials=0) for k in range(count)]
            ours, theirs = clone_strided(x), clone_strided(x)
            kernel = {"clamp_min_": "maximum_", "clamp_max_": "minimum_", "clamp_": "clamp_between"}.get(
                name, name
            )
            pads = [("t", k + 1) for k in range(count)] + [None, None]
            run(
                compute,
                [("load", T0, None), (kernel, pads[0], pads[1]), ("store", T0, None)],
                [ours, *operands],
            )
            path = testing.last_path()
            getattr(ie, name)(theirs, *operands)
            assert testing.last_path() == path
            assert matches(ours, theirs).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_moves(dtype: torch.dtype) -> None:
    compute = {torch.float64: "f64", torch.int64: "i64", torch.bool: "u8"}.get(
        dtype, "f32" if dtype in FLOATS else "i64"
    )
    for layout in LAYOUTS:
        x, y = make((7, 80), dtype, layout, 1), make((7, 80), dtype, "rows", 2)
        run(compute, [("load", T1, None), ("store", T0, None)], [x, y])
        expect_path("move")
        assert matches(x, y).all()


# ---- chains -----------------------------------------------------------------------------------------------

NORMALIZE: Stages = [
    ("load", T0, None),
    ("sub_", T1, None),
    ("div_", T2, None),
    ("clamp_", S0, S1),
    ("store", T0, None),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_normalize_on_all_sizes(dtype: torch.dtype) -> None:
    """Tails of a tile (8 vectors) and of a chunk (512 elements, of float32 1024)."""
    compute = "f64" if dtype == torch.float64 else "f32"
    sizes = [0, 1, *range(2, 300, 7), 127, 128, 129, 255, 256, 511, 512, 513, 640, 1023, 1024, 1025, 1537]
    for n in sizes:
        for layout in ("contiguous", "offset", "step"):
            tensors = [make((n,), dtype, layout, k) for k in range(3)]
            # Without elements there is nothing to choose a path for.
            check_program(compute, NORMALIZE, tensors, [-1.5, 2.5], path="program" if n else None)


def test_normalize_on_all_layouts() -> None:
    for seed, ours in enumerate(LAYOUTS):
        for theirs in LAYOUTS:
            for shape in ((3, 20, 70), (70, 33)):
                x = make(shape, torch.float32, ours, seed)
                mean, std = (
                    make(shape, torch.float32, theirs, seed + 1),
                    make(shape[-1:], torch.float32, "step", 2),
                )
                check_program("f32", NORMALIZE, [x, mean, std], [-1.0, 1.0])
                column = make((*shape[:-1], 1), torch.float32, "contiguous", 4)
                check_program("f32", NORMALIZE, [x, column, make((), torch.float32)], [-1.0, 1.0])


def test_special_values_in_a_chain() -> None:
    for dtype in FLOATS:
        s = special_values(dtype)
        x, y = s.repeat_interleave(len(s)), s.repeat(len(s))
        stages: Stages = [
            ("load", T0, None),
            ("mul_", T1, None),
            ("relu_", None, None),
            ("maximum_", T1, None),
            ("neg_", None, None),
            ("store", T0, None),
        ]
        check_program("f64" if dtype == torch.float64 else "f32", stages, [x, y])


def test_optimizer_step() -> None:
    """Two tensors stored: buf.mul_(momentum).add_(grad); p.add_(buf, alpha=-lr)."""
    stages: Stages = [
        ("load", T2, None),
        ("mul_", S0, None),
        ("add_", T1, None),
        ("store", T2, None),
        ("store", R0, None),
        ("load", T0, None),
        ("add_scaled", R0, S1),
        ("store", T0, None),
    ]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for layout in ("contiguous", "transposed_rows", "step"):
            tensors = [make((31, 65), dtype, layout, k) for k in range(3)]
            check_program("f64" if dtype == torch.float64 else "f32", stages, tensors, [0.9, -0.1])


def test_temporaries_hold_each_their_own_value() -> None:
    count = LIMITS["temporaries"]
    stages: Stages = []
    for k in range(count):
        stages += [("load", T0, None), ("mul_", ("s", k), None), ("store", ("r", k), None)]
    stages += [("load", S0, None)]
    stages += [("sub_", ("r", k), None) for k in range(count)]
    stages += [("store", T0, None), ("load", ("r", 3), None), ("store", T1, None)]
    for n in (5, 700):
        tensors = [make((n,), torch.float32, "contiguous", 1), make((n,), torch.float32, "step", 2)]
        check_program("f32", stages, tensors, [1.5 + k for k in range(count)])


def test_stored_value_is_read_again() -> None:
    """What a stage stores, later stages read; a narrower tensor gives it back rounded."""
    by_load: Stages = [
        ("load", T0, None),
        ("mul_", S0, None),
        ("store", T0, None),
        ("load", T0, None),
        ("add_", T1, None),
        ("store", T1, None),
    ]
    by_operand: Stages = [*by_load[:3], ("load", T1, None), ("add_", T0, None), ("store", T1, None)]
    for stages in (by_load, by_operand):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for layout in ("contiguous", "step"):
                tensors = [make((300,), dtype, layout, 1, 0), make((300,), torch.float32, layout, 2, 0)]
                check_program("f32", stages, tensors, [1 / 3])


@pytest.mark.parametrize("dtype", list(ROUND))
def test_round(dtype: str) -> None:
    for compute in ("f32", "f64"):
        if (compute, dtype) == ("f32", "f64"):
            continue
        x = make_data(700, COMPUTE[compute], 3)
        check_program(compute, [("load", T0, None), ("round", dtype, None), ("store", T0, None)], [x])


def test_mixed_dtypes_in_one_program() -> None:
    """Loads and stores convert; everything between is in the compute dtype."""
    for compute, operands in (
        ("f32", [*FLOATS, *INTS, torch.bool]),
        ("f64", FLOATS),
        ("i32", INTS),
        ("u8", [torch.bool]),
    ):
        for other in operands:
            for layout in ("contiguous", "step", "transposed"):
                x = make((20, 33), COMPUTE[compute], "contiguous", 1, specials=0)
                y = make((20, 33), other, layout, 2, specials=0)
                check_program(
                    compute,
                    [("load", T1, None), ("add_", T0, None), ("mul_", T1, None), ("store", T0, None)],
                    [x, y],
                )
                if other in FLOATS or compute not in ("f32", "f64"):
                    check_program(
                        compute,
                        [("load", T0, None), ("add_", S0, None), ("relu_", None, None), ("store", T1, None)],
                        [x, y],
                        [3],
                    )


def random_program(r: random.Random, compute: str) -> tuple[Stages, list[torch.Tensor], list[float]]:
    """Up to 30 stages over up to 6 tensors: written ones of one shape, read-only ones that may broadcast."""
    floating = compute in ("f32", "f64")
    shape = [r.choice([1, 2, 3, 5, 9, 17, 40, 64, 70]) for _ in range(r.randint(1, 3))]
    if r.random() < 0.3:
        shape = [r.choice([1, 7, 63, 128, 129, 511, 513, 1100])]
    if compute in ("f32", "u8"):
        pool = {"f32": FLOATS, "u8": [torch.uint8, torch.bool, torch.int16]}[compute]
    else:
        pool = FLOATS if floating else INTS
    own = COMPUTE[compute]
    tensors, writable = [], []
    for k in range(r.randint(1, 6)):
        dtype = own if r.random() < 0.5 else r.choice(pool)
        write = k == 0 or r.random() < 0.4
        size = list(shape)
        if not write:
            size = [1 if r.random() < 0.3 else s for s in shape]
            if r.random() < 0.3:
                size = size[r.randint(0, len(size)) :]
            if floating and r.random() < 0.15:
                dtype = r.choice([*INTS, torch.bool])
        t = make(size, dtype, r.choice(LAYOUTS), r.randint(0, 999), specials=0.05 if dtype in FLOATS else 0)
        tensors.append(t)
        writable.append(write)
    scalars: list[float] = [
        r.choice([0.5, -1.25, 2.0, 3.1, 1e-3]) if floating else r.randint(1, 5) for _ in range(6)
    ]
    # div_floor and powers of what a chain makes leave the range where all agree: few, and by number.
    names = [n for n in FORMS if built(n, compute) and n not in ("add_scaled", "pow_")]
    stored: set[int] = set()
    temporaries: list[int] = []
    stages: Stages = []

    def operand(name: str) -> tuple[str, int]:
        kind = r.random()
        divides = name.startswith("div_") or name in ("fmod_", "remainder_")
        if kind < 0.35 or (divides and not floating) or (name in FORMS and FORMS[name][1]):
            return ("s", r.randrange(len(scalars)))
        if kind < 0.5 and temporaries:
            return ("r", r.choice(temporaries))
        # Read after a store has a test of its own.
        fresh = [k for k in range(len(tensors)) if k not in stored or tensors[k].dtype == own]
        return ("t", r.choice(fresh)) if fresh else ("s", 0)

    stages.append(("load", ("t", 0), None))
    for _ in range(r.randint(1, 26)):
        kind = r.random()
        if kind < 0.1:
            stages.append(("load", operand("load"), None))
        elif kind < 0.25:
            index = r.randrange(LIMITS["temporaries"])
            stages.append(("store", ("r", index), None))
            temporaries.append(index)
        elif kind < 0.32:
            index = r.choice([k for k, w in enumerate(writable) if w])
            stages.append(("store", ("t", index), None))
            stored.add(index)
        elif kind < 0.37 and floating:
            stages.append(("round", r.choice(["f16", "bf16", "f32"]), None))
        elif kind < 0.43:
            stages.append(("add_scaled", operand("add_scaled"), ("s", r.randrange(len(scalars)))))
        elif kind < 0.46:
            stages.append(("pow_", ("s", r.choice([k for k, s in enumerate(scalars)])), None))
        else:
            name = r.choice(names)
            b, c = [operand(name) if k < OPERANDS[name] else None for k in range(2)]
            stages.append((name, b, c, *[("s", r.randrange(len(scalars)))] * (OPERANDS[name] == 3)))
    stages.append(("store", ("t", 0), None))
    return stages, tensors, scalars


@pytest.mark.parametrize("compute", list(COMPUTE))
def test_random_programs(compute: str) -> None:
    r = random.Random(list(COMPUTE).index(compute))
    for _ in range(60):
        stages, tensors, scalars = random_program(r, compute)
        check_program(compute, stages, tensors, scalars, path="program" if len(stages) > 3 else None)


@pytest.mark.parametrize("compute", ["f32", "f64", "i16"])
def test_layout_does_not_change_a_program(compute: str) -> None:
    r = random.Random(5)
    for _ in range(12):
        stages, tensors, scalars = random_program(r, compute)
        results = []
        for layout in ("contiguous", *LAYOUTS):
            copies = [make(t.shape, t.dtype, layout, 1, data=t) for t in tensors]
            run(compute, stages, copies, scalars)
            results.append(copies)
        for copies in results[1:]:
            assert all(matches(a, b).all() for a, b in zip(copies, results[0], strict=True)), (
                stages,
                scalars,
            )


def test_thread_count_does_not_change_a_program() -> None:
    for shape, layouts in (
        ((3, 40000), ("contiguous",) * 3),
        ((301, 333), ("rows", "transposed", "step")),
    ):
        results = []
        for count in (1, 2, 3):
            tensors = [make(shape, torch.float32, layout, k) for k, layout in enumerate(layouts)]
            with threads(count):
                run("f32", NORMALIZE, tensors, [-1.0, 1.0])
            expect_path("program")
            results.append(bits(tensors[0]).clone())
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- limits and refusals ----------------------------------------------------------------------------------


def test_a_program_at_every_limit() -> None:
    tensors = [
        make((130,), torch.float32, ["contiguous", "step"][k % 2], k, 0) for k in range(LIMITS["tensors"])
    ]
    scalars = [1 + k / 64 for k in range(LIMITS["scalars"])]
    stages: Stages = [("load", T0, None)]
    for k in range(LIMITS["temporaries"]):
        stages.append(("store", ("r", k), None))
    k = 0
    while len(stages) < LIMITS["stages"] - 1:
        k += 1
        operand = [
            ("t", k % LIMITS["tensors"]),
            ("s", -k % LIMITS["scalars"]),
            ("r", k % LIMITS["temporaries"]),
        ][k % 3]
        stages.append((["add_", "sub_", "maximum_", "minimum_"][k % 4], operand, None))
    stages.append(("store", ("t", LIMITS["tensors"] - 1), None))
    check_program("f32", stages, tensors, scalars)


OK: Stages = [("load", T0, None), ("add_", S0, None), ("store", T0, None)]
BAD: list[tuple[str, type[Exception], str, Stages, int, int]] = [
    # what the message names, exception, compute, stages, tensors, scalars
    (
        "at most",
        ValueError,
        "f32",
        [("load", T0, None), *[("neg_", None, None)] * 200, ("store", T0, None)],
        1,
        0,
    ),
    ("at least one stage", ValueError, "f32", [], 1, 0),
    ("at most", ValueError, "f32", OK, 99, 1),
    ("at most", ValueError, "f32", OK, 1, 999),
    ("unknown operation", ValueError, "f32", [OK[0], ("frobnicate_", None, None), OK[2]], 1, 0),
    ("unknown dtype", ValueError, "f31", OK, 1, 1),
    ("compute type", ValueError, "f16", OK, 1, 1),
    ("out of range", IndexError, "f32", [("load", ("t", 1), None), OK[2]], 1, 0),
    ("out of range", IndexError, "f32", [OK[0], ("add_", ("s", 1), None), OK[2]], 1, 1),
    ("out of range", IndexError, "f32", [OK[0], ("add_", ("t", -1), None), OK[2]], 1, 1),
    ("out of range", IndexError, "f32", [OK[0], ("store", ("r", 99), None), OK[2]], 1, 0),
    ("temporary", ValueError, "f32", [OK[0], ("add_", R0, None), OK[2]], 1, 0),
    ("temporary", ValueError, "f32", [("load", R1, None), OK[2]], 1, 0),
    ("operand", ValueError, "f32", [OK[0], ("add_", ("x", 0), None), OK[2]], 1, 0),
    ("operands", ValueError, "f32", [OK[0], ("add_", None, None), OK[2]], 1, 0),
    ("operands", ValueError, "f32", [OK[0], ("neg_", S0, None), OK[2]], 1, 1),
    ("operands", ValueError, "f32", [OK[0], ("add_", None, S0), OK[2]], 1, 1),
    ("operands", ValueError, "f32", [OK[0], ("clamp_", S0, None), OK[2]], 1, 1),
    ("store", ValueError, "f32", [OK[0], ("store", S0, None)], 1, 1),
    ("load", ValueError, "f32", [("load", None, None), OK[2]], 1, 0),
    ("no form", ValueError, "i32", [OK[0], ("exp_", None, None), OK[2]], 1, 0),
    ("no form", ValueError, "i32", [OK[0], ("logical_or", T0, None), OK[2]], 1, 0),
    ("round", ValueError, "i32", [OK[0], ("round", "f16", None), OK[2]], 1, 0),
    ("round", ValueError, "f32", [OK[0], ("round", "i8", None), OK[2]], 1, 0),
    ("no tensor is written", ValueError, "f32", [OK[0], ("neg_", None, None), ("store", R0, None)], 1, 0),
    ("(name, b, c)", ValueError, "f32", [("load", T0)], 1, 0),  # type: ignore[list-item]
]


@pytest.mark.parametrize("message, kind, compute, stages, n_tensors, n_scalars", BAD)
def test_programs_that_are_refused(
    message: str, kind: type[Exception], compute: str, stages: Stages, n_tensors: int, n_scalars: int
) -> None:
    tensors = [torch.ones(40) for _ in range(n_tensors)]
    with pytest.raises(kind) as error:
        run(compute, stages, tensors, [1.5] * n_scalars)
    assert message in str(error.value) and "program" in str(error.value)
    assert all(bool((t == 1).all()) and t._version == 0 for t in tensors)


def test_tensors_that_are_refused() -> None:
    x, y = torch.ones(4, 6), torch.ones(4, 6)
    stages: Stages = [("load", T0, None), ("add_", T1, None), ("store", T0, None)]
    memory = torch.ones(8, 6)
    cases: list[tuple[list[Any], type[Exception]]] = [
        ([x, torch.ones(5)], RuntimeError),
        ([x, torch.ones(2, 4, 6)], RuntimeError),
        ([torch.ones(6), y], RuntimeError),
        ([memory[:4], memory[1:5]], RuntimeError),
        ([x, x.t()[:4, :4].expand(4, 4)], RuntimeError),
        ([torch.ones(1).expand(4, 6), y], TypeError),
        ([torch.ones(4, 6, requires_grad=True), y], TypeError),
        ([x, torch.ones(4, 6, dtype=torch.complex64)], (TypeError)),
        ([x, torch.ones(4, 6, device="meta")], TypeError),
        ([x, None], TypeError),
        ([x, 3.0], TypeError),
    ]
    for tensors, kind in cases:
        with pytest.raises(kind, match="program"):
            run("f32", stages, tensors)
    assert bool((x == 1).all()) and bool((memory == 1).all()) and x._version == 0
    with pytest.raises((ValueError, TypeError), match="program"):
        run("f32", [("load", T0, None), ("add_", S0, None), ("store", T0, None)], [x], ["1"])  # type: ignore[list-item]
    wide = torch.rand([2] * 20).permute(*range(1, 20, 2), *range(0, 20, 2))
    with pytest.raises(ValueError, match="too many dims"):
        run("f32", stages, [wide, torch.rand([2] * 20)])


def test_two_written_tensors_must_not_overlap() -> None:
    stages: Stages = [("load", T0, None), ("store", T1, None), ("neg_", None, None), ("store", T0, None)]
    memory = make_data(64, torch.float32, 1, specials=0)
    before = memory.clone()
    with pytest.raises(RuntimeError, match="share memory"):
        run("f32", stages, [memory[:40], memory[20:60]])
    assert same_bits(memory, before)
    run("f32", stages, [memory[:64:2], memory[1::2]])
    assert same_bits(memory[1::2], before[::2]) and same_bits(memory[::2], -before[::2])
