"""Compiling at run time: operations of one's own, what can be wrong with them, the cache, and csrc itself."""

from __future__ import annotations

import ctypes
import inspect
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import backend

import inplace_ext as ie
from inplace_ext import _build, _fuse, _native, _toolchain, testing
from inplace_ext._expression import FUNCTIONS
from inplace_ext.jit import ExpressionError

ROOT = Path(__file__).resolve().parent.parent
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TEXT = "x / (1 + abs(x) / limit)"

native = pytest.mark.skipif(
    _native.module is None or _build.missing_toolchain() is not None,
    reason="needs the compiled module and a compiler",
)
pytestmark = native
checkout = pytest.mark.skipif(_build.csrc() != ROOT / "csrc", reason="needs the source tree")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, so that what is tested is compiled and not found."""
    folder = tmp_path_factory.mktemp("extensions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        yield folder / "inplace_ext"


@pytest.fixture(scope="module")
def softclip_() -> Any:
    return ie.jit.elementwise("softclip_", TEXT, scalars=["limit"])


@pytest.fixture(scope="module")
def mix_() -> Any:
    """Every kind of operand, of a float and an integer dtype beside the usual ones."""
    return ie.jit.elementwise("mix_", "where(y > x, x + y * a, y - x)", tensors=["y"], scalars={"a": 2},
                              dtypes=[*FLOATS, torch.int32])  # fmt: skip


def softclip(x: torch.Tensor, limit: float) -> torch.Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide / (1 + wide.abs() / limit)).to(x.dtype)


def mix(x: torch.Tensor, y: Any, a: float = 2) -> torch.Tensor:
    y = torch.as_tensor(y, dtype=x.dtype) if not isinstance(y, torch.Tensor) else y
    wide, other = ((t.float() if t.dtype in (torch.float16, torch.bfloat16) else t) for t in (x, y))
    return torch.where(other > wide, wide + other * a, other - wide).to(x.dtype)


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(str(ie.__file__)).parent.parent), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
    )


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


# ---- values and layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 1000, 70_000])
def test_values_are_those_of_the_expression(softclip_: Any, dtype: torch.dtype, size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).mul(5).to(dtype)
    if size > 8:
        x[:5] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0])
    wanted, before = softclip(x, 3.0), x._version
    assert softclip_(x, 3.0) is x and x._version == before + 1
    assert testing.last_path().endswith(":loop")
    same(x, wanted)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_layouts_and_broadcasting(mix_: Any, dtype: torch.dtype) -> None:
    numbers = torch.arange(-60, 60).to(dtype)
    a = numbers.view(4, 5, 6)
    layouts = [a, a.mT, a[:, ::2], a.flip(0), a[1:, :, 3], a[2, 1, 1], a[:0]]
    for layout in layouts:
        # The operand as large as the element, in the row, in the column, as one number, and in another order.
        operands: list[Any] = [layout.clone().neg_(), 3]
        if layout.dim() == 3:
            operands += [layout[:1], layout[:, :1], layout[..., :1], layout.mT.contiguous().mT]
        for y in operands:
            y = y.clone() if isinstance(y, torch.Tensor) else y
            x = torch.empty_strided(layout.shape, layout.stride(), dtype=dtype).copy_(layout)
            wanted = mix(x, y)
            mix_(x, y)
            assert testing.last_path() != "torch"
            same(x, wanted)
    x = numbers[:12].clone().view(3, 4)
    rest = x.clone()
    mix_(x[:, 1:3], 2, a=1)
    same(x[:, 1:3], mix(rest[:, 1:3], 2, 1))
    same(x[:, ::3], rest[:, ::3])


def test_promotion_is_torchs(mix_: Any) -> None:
    x, y = torch.randn(9), torch.randn(9, dtype=torch.float64)
    wanted = torch.where(y > x, x + y * 2, y - x).float()
    same(mix_(x.clone(), y), wanted)
    assert testing.last_path() != "torch"
    with pytest.raises(RuntimeError, match="can't be cast"):
        mix_(torch.ones(3, dtype=torch.int32), torch.ones(3))
    with pytest.raises(RuntimeError, match="can't be cast"):
        mix_(torch.ones(3, dtype=torch.int32), 1, a=0.5)
    # A dtype without kernels, through torch.
    same(mix_(torch.ones(3, dtype=torch.int64), 4), torch.full((3,), 9))
    assert testing.last_path() == "torch"


def test_every_function_means_what_it_does_elsewhere() -> None:
    """A few operations hold all of them: a library each would take minutes."""
    unary = [name for name, function in FUNCTIONS.items() if function.arguments == 1]
    chunks = [unary[i::3] for i in range(3)]
    x = torch.cat([torch.linspace(-4, 4, 173), torch.tensor([math.inf, -math.inf, math.nan, -0.0, 0.5])])
    tested = 0
    for i, chunk in enumerate(chunks):
        # One function for each value of `which`.
        lines = "x"
        for number, name in enumerate(chunk):
            lines = f"{name}(x) if which == {number} else ({lines})"
        function = ie.jit.elementwise(f"all{i}_", lines, scalars=["which"], dtypes=["float32", "float64"])
        for number, name in enumerate(chunk):
            for dtype in (torch.float32, torch.float64):
                given = x.to(dtype)
                got = function(given.clone(), number)
                assert testing.last_path() != "torch"
                same(
                    got, getattr(ie, f"{name}_")(given.clone())
                )  # the table's, which other tests hold to torch
                with testing.native_disabled():
                    wanted = function(given.clone(), number)
                if name == "gelu":  # of which torch's float32 form is NaN at infinity
                    got, wanted = got[given.isfinite()], wanted[given.isfinite()]
                torch.testing.assert_close(
                    got, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-11,
                    atol=1e-6 if dtype == torch.float32 else 1e-12, equal_nan=True,
                )  # fmt: skip
                tested += 1
    assert tested == 2 * len(unary)
    binary = ie.jit.elementwise(
        "binary_",
        """
        low = min(x, y)
        high = max(x, y)
        inside = -2 < x <= 2 and not isnan(y)
        powers = x ** 2 - x ** y if inside else x % 3
        clamp(x * 3, low, high) + powers + copysign(1, y) * (x // 2) + fmod(y, 3)
        """,
        tensors=["y"],
        dtypes=["float64"],
    )
    a = x.double()
    y = a.flip(0).contiguous()
    low, high = torch.minimum(a, y), torch.maximum(a, y)
    inside = (a > -2) & (a <= 2) & ~torch.isnan(y)
    wanted = torch.clamp(a * 3, low, high) + torch.where(inside, a**2 - a**y, a % 3)
    wanted += torch.copysign(torch.ones_like(a), y) * (a // 2) + torch.fmod(y, 3)
    torch.testing.assert_close(binary(a.clone(), y), wanted, rtol=1e-14, atol=1e-14, equal_nan=True)
    assert testing.last_path() != "torch"


def test_result_is_that_of_the_operation_of_the_table(softclip_: Any) -> None:
    mine = ie.jit.elementwise("my_hardswish_", "x * min(6, max(0, x + 3)) / 6")
    for dtype in FLOATS:
        x = torch.randn(1003).mul(4).to(dtype)
        same(mine(x.clone()), ie.hardswish_(x.clone()))


@pytest.mark.parametrize("capability", testing.available_capabilities())
def test_each_instruction_set_gets_its_own_library(softclip_: Any, capability: str) -> None:
    x = torch.randn(1003)
    with backend(capability):
        same(softclip_(x.clone(), 2.0), softclip(x, 2.0))
        assert testing.last_path() == f"{capability}:loop"


def test_conditions_count_as_one_and_zero() -> None:
    count_ = ie.jit.elementwise("count_", "(x > 0) + (x > 1) * 2.0")
    x = torch.tensor([-1.0, 0.5, 2.0, math.nan])
    same(count_(x.clone()), torch.tensor([0.0, 1.0, 3.0, 0.0]))
    with testing.native_disabled():
        same(count_(x.clone()), torch.tensor([0.0, 1.0, 3.0, 0.0]))


def test_names_that_mean_something_in_cpp() -> None:
    odd_ = ie.jit.elementwise(
        "odd_", "double = x * new\ndouble + T2 * int", tensors=["new"], scalars=["T2", "int"]
    )
    same(odd_(torch.ones(3), torch.full((3,), 2.0), 3, 4), torch.full((3,), 14.0))


# ---- as functions -----------------------------------------------------------------------------------------


def test_signature_docstring_and_pickle() -> None:
    own_ = ie.jit.elementwise("defined_here_", TEXT, scalars=["limit"])  # by nobody else in the process
    assert str(inspect.signature(own_)) == "(input, limit)"
    assert own_.__name__ == "defined_here_" and own_.__module__ == __name__
    assert own_.__doc__ is not None
    assert "x = x / (1 + abs(x) / limit), for each element x" in own_.__doc__
    assert "float16, bfloat16, float32, float64" in own_.__doc__
    twin = ie.jit.elementwise("softclip", TEXT, scalars={"limit": 2.0}, doc="Clips softly")
    assert str(inspect.signature(twin)) == "(input, limit=2.0)" and twin.__name__ == "softclip"
    assert twin.__doc__ is not None and twin.__doc__.startswith("Clips softly, in a new tensor.")
    same(twin(torch.ones(2)), torch.full((2,), 1 / 1.5))
    named = ie.jit.elementwise("pickled_", TEXT, scalars=["limit"])
    globals()["pickled_"] = named  # as at the top of a module
    assert pickle.loads(pickle.dumps(named)) is named


def test_the_same_definition_is_the_same_function(softclip_: Any) -> None:
    assert ie.jit.elementwise("softclip_", TEXT, scalars=["limit"]) is softclip_
    other = ie.jit.elementwise("softclip_", "x * limit", scalars=["limit"])
    same(other(torch.ones(2), 3.0), torch.full((2,), 3.0))
    same(softclip_(torch.ones(2), 1.0), torch.full((2,), 0.5))  # as it was

    @ie.fuse
    def both_(x: torch.Tensor) -> torch.Tensor:
        softclip_(x, 1.0)
        return other(x, 3.0)

    same(both_(torch.ones(2)), torch.full((2,), 1.5))
    assert testing.last_path().endswith(":program")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, g: f(torch.ones(3)), TypeError, "softclip_: missing 1 required .*: 'limit'"),
        (lambda f, g: f(torch.ones(3), torch.ones(3)), TypeError, "limit must be a number, not a tensor"),
        (lambda f, g: f(torch.ones(3), "2"), TypeError, "limit must be a number, not str"),
        (lambda f, g: f([1.0], 2), TypeError, "input must be a torch.Tensor, not list"),
        (lambda f, g: f(torch.ones(3), 2, 3), TypeError, "softclip_: takes 2 positional arguments but 3"),
        (lambda f, g: g(torch.ones(3), torch.ones(4)), RuntimeError, "mix_: The size of tensor a"),
        (lambda f, g: g(torch.ones(3), torch.ones(2, 3)), RuntimeError, "doesn't match the broadcast shape"),
        (lambda f, g: f(torch.ones(3).expand(2, 3), 2), RuntimeError, "softclip_: unsupported operation"),
        (lambda f, g: f(torch.ones(3, requires_grad=True), 2), RuntimeError, "leaf Variable that"),
    ],
)  # fmt: skip
def test_errors_leave_the_tensor(softclip_: Any, mix_: Any, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(softclip_, mix_)
    x = torch.ones(3)
    with pytest.raises(RuntimeError):
        mix_(x, torch.full((2, 3), 7.0))
    same(x, torch.ones(3))


def test_an_operand_that_shares_memory(mix_: Any) -> None:
    x = torch.randn(10)
    wanted = mix(x[1:], x[:-1].clone())
    mix_(x[1:], x[:-1])
    same(x[1:], wanted)


# ---- everything that torch does ---------------------------------------------------------------------------


def test_autograd_and_transforms(softclip_: Any, mix_: Any) -> None:
    twin = ie.jit.elementwise("softclip", TEXT, scalars=["limit"])
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: twin(t, 2.0), (x,))
    assert torch.autograd.gradcheck(lambda t: softclip_(t.clone(), 2.0), (x,))
    assert torch.autograd.gradcheck(lambda s, t: mix_(s.clone(), t), (x, y))
    rows = torch.randn(4, 3)
    same(torch.func.vmap(lambda t: twin(t, 2.0))(rows), softclip(rows, 2.0))
    got = torch.func.grad(lambda t: twin(t, 2.0).sum())(rows)
    torch.testing.assert_close(got, 1 / (1 + rows.abs() / 2) ** 2)


def test_compile(softclip_: Any, mix_: Any) -> None:
    twin = ie.jit.elementwise("softclip", TEXT, scalars=["limit"])

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mix_(softclip_(x * 2, 2.0), twin(y, 3.0))

    x, y = torch.randn(9), torch.randn(9)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), function(x, y))


def test_subclasses_see_torchs_functions(softclip_: Any) -> None:
    called = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs)

    x = torch.ones(3).as_subclass(Watching)
    softclip_(x, 1.0)
    assert "abs" in called and x.tolist() == [0.5] * 3


def test_fused(softclip_: Any, mix_: Any) -> None:
    twin = ie.jit.elementwise("softclip", TEXT, scalars=["limit"])

    @ie.fuse
    def chain_(x: torch.Tensor, y: torch.Tensor, limit: float) -> torch.Tensor:
        softclip_(x, limit)
        x.add_(twin(y, 2.0))
        return mix_(x, y, a=limit)

    for dtype in (torch.float32, torch.float64):
        for x, y in [
            (torch.randn(1003, dtype=dtype), torch.randn(1003, dtype=dtype)),
            (torch.randn(30, 40, dtype=dtype).t(), torch.randn(30, dtype=dtype)),
        ]:
            wanted = mix(softclip(x, 3.0) + softclip(y, 2.0), y.expand_as(x), 3.0)
            same(chain_(x.clone(), y, 3.0), wanted)
            assert testing.last_path().endswith(":program")
    lists = [torch.randn(n) for n in (3, 50, 7)], [torch.randn(n) for n in (3, 50, 7)]
    wanted_list = [mix(softclip(x, 1.5) + softclip(y, 2.0), y, 1.5) for x, y in zip(*lists, strict=True)]
    chain_(*lists, 1.5)
    for got, wanted in zip(lists[0], wanted_list, strict=True):
        same(got, wanted)


def test_fused_with_a_mistake(mix_: Any) -> None:
    @ie.fuse
    def wrong_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return mix_(x, y)

    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"size of tensor|broadcast"):
        wrong_(x, torch.ones(4))
    same(x, torch.ones(3))


def test_twin_broadcasts_and_leaves_its_input() -> None:
    twin = ie.jit.elementwise("mix", "where(y > x, x + y * a, y - x)", tensors=["y"], scalars={"a": 2})
    x, y = torch.randn(3, 1), torch.randn(4)
    before = x.clone()
    same(twin(x, y), mix(x.expand(3, 4), y.expand(3, 4)))
    assert testing.last_path() != "torch"
    same(x, before)
    assert twin(x, y.double()).dtype == torch.float64
    assert twin(x.half(), 1).dtype == torch.float16
    with pytest.raises(TypeError, match="mix_: missing a required argument: 'y'"):
        twin(x)


def test_without_kernels(softclip_: Any, mix_: Any) -> None:
    x, y = torch.randn(9).half(), torch.randn(9).half()
    with testing.native_disabled():
        same(softclip_(x.clone(), 2.0), softclip(x, 2.0))
        assert testing.last_path() == "torch"
        same(mix_(x.clone(), y), mix(x, y))


# ---- expressions that will not do -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x / (1 + abs(x) / limt)", "unknown name limt; did you mean limit?\n"
         "    x / (1 + abs(x) / limt)\n"
         "                      ^^^^"),
        ("x * limit +", "invalid syntax\n    x * limit +\n               ^"),
        ("(x * limit", "'(' was never closed\n    (x * limit\n    ^"),
        ("t = x * limit\nt + tanhh(t)", "unknown function tanhh; did you mean tanh?\n"
         "    t = x * limit\n    t + tanhh(t)\n        ^^^^^"),
        ("x if limit else 1", "a condition is wanted here, such as x > 0\n"
         "    x if limit else 1\n         ^^^^^"),
        ("abs(x, limit)", "abs takes 1 argument, got 2\n    abs(x, limit)\n    ^^^^^^^^^^^^^"),
        ("x * limit(2)", "limit is no function\n    x * limit(2)\n        ^^^^^"),
        ("limit * 2", "the expression does not use x"),
        ("x * 2", "limit is not used"),
        ("", "the expression is empty"),
        ("x.sum() * limit", "a function is called by its name\n    x.sum() * limit\n    ^^^^^"),
        ("x * 'a' + limit", "a constant is a number, not str"),
        ("x @ limit", "this operator is none of numbers"),
        ("x[0] * limit", "an expression has no indices"),
        ("abs = x\nlimit * abs", "abs has a meaning already"),
        ("return x * limit", "'return' outside function|the last line is the value"),
        ("x * limit; x", "before the value come lines"),
        ("clamp(x, min=limit)", "clamp takes its arguments by position"),
        ("x * 99999999999999999999 * limit", "more than 64 bits"),
        ("é * limit * x", "unknown name é; known are x, limit, pi, e, inf, nan\n    é * limit * x\n    ^"),
        ("x * ('é' + limt)", "a constant is a number"),
    ],
)  # fmt: skip
def test_mistakes_are_shown_in_the_expression(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        ie.jit.elementwise("softer_", text, scalars=["limit"])
    said = str(caught.value)
    assert said.startswith("softer_: ")
    assert any(part in said for part in message.split("|")), said


@pytest.mark.parametrize(("text", "what"), [("x / 2", "/"), ("exp(x)", "exp"), ("x * 0.5", "float constant")])
def test_integers_have_fewer_operations(text: str, what: str) -> None:
    with pytest.raises(ExpressionError, match="integer dtypes out") as caught:
        ie.jit.elementwise("whole_", text, dtypes=["int32"])
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "relu_"}, ValueError, "inplace_ext has an operation relu_"),
        ({"name": "2x_"}, ValueError, "no name for an operation"),
        ({"name": 3}, TypeError, "name must be a str, not int"),
        ({"expression": 3}, TypeError, "expression must be a str, not int"),
        ({"tensors": "y"}, TypeError, "tensors must be a list of names"),
        ({"scalars": ["x"]}, ValueError, "x has a meaning in expressions"),
        ({"scalars": ["a b"]}, ValueError, "'a b' is no name for an operand"),
        ({"scalars": {"a": "1"}}, TypeError, "the default of a must be a number, not '1'"),
        ({"tensors": ["y"], "scalars": ["y"]}, ValueError, "two operands have the same name"),
        ({"tensors": ["a", "b", "c"]}, ValueError, "3 tensors and 0 scalars; an operation takes 2 tensors"),
        ({"scalars": {"a": 1, "b": None}}, ValueError, "a scalar without a default follows"),
        ({"dtypes": ["complex64"]}, ValueError, "dtypes must be some of .*, got complex64"),
        ({"dtypes": []}, ValueError, "dtypes must be some of .*, got none"),
        ({"cost": 0}, ValueError, "cost must be a positive int, got 0"),
    ],
)
def test_arguments_that_will_not_do(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ie.jit.elementwise(**{"name": "wrong_", "expression": "x * 2", **arguments})


# ---- the compiler and the cache ---------------------------------------------------------------------------

DEFINE = f"""
import time, torch
import inplace_ext as ie
begin = time.perf_counter()
f_ = ie.jit.elementwise("cached_", {TEXT!r}, scalars=["limit"])
taken = time.perf_counter() - begin
x = f_(torch.ones(3), 1.0)
assert x.tolist() == [0.5] * 3 and ie.testing.last_path() != "torch", (x, ie.testing.last_path())
print(taken)
"""


@pytest.fixture
def counting_compiler(tmp_path: Path) -> tuple[str, Path]:
    """A compiler that counts how often it compiles, and the file in which it does."""
    log, script = tmp_path / "compiled", tmp_path / "c++"
    real = shutil.which(os.environ.get("CXX", "c++"))
    script.write_text(f'#!/bin/sh\ncase "$*" in *"-o operation.o"*) echo >> {log};; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    return str(script), log


def test_two_processes_compile_once(tmp_path: Path, counting_compiler: tuple[str, Path]) -> None:
    compiler, log = counting_compiler
    environment = {
        **os.environ,
        "CXX": compiler,
        "CCACHE_DISABLE": "1",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(str(ie.__file__)).parent.parent),
    }
    code = "import inplace_ext.testing\n" + DEFINE
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert len(log.read_text().splitlines()) == 1
    # And once more, which compiles nothing and takes milliseconds.
    again = run(code, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert again.returncode == 0, again.stderr
    assert len(log.read_text().splitlines()) == 1
    assert float(again.stdout) < 0.5
    # What a killed process leaves behind is in nobody's way.
    for folder in (tmp_path / "cache" / "inplace_ext").iterdir():
        (folder / "finished").unlink()
        (folder / "lock").touch()
    again = run(code, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert again.returncode == 0, again.stderr


def test_what_the_compiler_says_comes_through(tmp_path: Path) -> None:
    script = tmp_path / "c++"
    real = shutil.which(os.environ.get("CXX", "c++"))
    broken = 'case "$*" in *operation.cpp*) echo \'#error sabotage\' >> "$PWD/operation.cpp";; esac'
    script.write_text(f'#!/bin/sh\n{broken}\nexec {real} "$@"\n')
    script.chmod(0o755)
    result = run(
        "import inplace_ext.testing\n" + DEFINE, CXX=str(script), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache")
    )
    assert result.returncode != 0
    assert "operation.cpp:" in result.stderr and "#error sabotage" in result.stderr


def test_without_a_compiler_torch_does_the_work(tmp_path: Path) -> None:
    code = """
import warnings, torch
import inplace_ext as ie
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    f_ = ie.jit.elementwise("lonely_", "x * 2 + a", scalars=["a"])
    g = ie.jit.elementwise("lonely", "x * 2 + a", scalars=["a"])
assert f_(torch.ones(2), 3).tolist() == [5.0, 5.0] and g(torch.ones(2), 3).tolist() == [5.0, 5.0]
h_ = ie.fuse(lambda x: f_(x.add_(1), 1))
assert h_(torch.ones(2)).tolist() == [5.0, 5.0]
print([str(item.message) for item in caught])
"""
    result = run(code, CXX="/nonexistent/c++", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("lonely_ goes through torch's functions: no C++ compiler") == 1


def test_the_key_tells_what_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert _toolchain.cache() == tmp_path / "inplace_ext"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    from torch.utils import cpp_extension

    ours, torchs = _toolchain.cache().parent, Path(cpp_extension._get_build_directory("inplace_ext", False))
    assert ours == torchs.parent
    before = _toolchain.environment()
    monkeypatch.setenv("CXX", "false")
    assert _toolchain.environment() != before
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert "0.0" in _toolchain.environment()


# ---- csrc itself ------------------------------------------------------------------------------------------


def test_load_needs_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ops= compiles operations for the CPU alone"):
        ie.jit.load(cuda=True, ops=["tanh_"])
    with pytest.raises(ValueError, match="nope_ is no operation of"):
        ie.jit.load(ops=["nope_"])
    monkeypatch.setattr(_native, "module", None)
    with pytest.raises(RuntimeError, match="INPLACE_EXT_JIT=1"):
        ie.jit.load()


# ---- CUDA -------------------------------------------------------------------------------------------------


@pytest.fixture
def nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An nvcc of CUDA 13.1 that notes what it is to compile, and a torch that is built with CUDA."""
    log, compiler = tmp_path / "compiled", tmp_path / "toolkit" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(f"""#!/bin/sh
case "$*" in --version) echo 'Cuda compilation tools, release 13.1, V13.1.1'; exit;; esac
echo "$@" >> {log}
echo 'operation.cu(7): error: what nvcc says' >&2
exit 1
""")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(compiler.parents[1]))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return log


@pytest.mark.parametrize(
    ("torchs", "home", "message"),
    [
        (None, "toolkit", "is a build without CUDA, for which CUDA kernels are of no use; install one with"),
        ("13.0", "nowhere", "built with CUDA 13.0, but no nvcc is on PATH or in CUDA_HOME"),
        ("12.8", "toolkit", "is of CUDA 13.1: the major versions must be the same"),
    ],
)
def test_load_says_what_cuda_lacks(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch, torchs: str | None, home: str, message: str
) -> None:
    before = ie.info()
    monkeypatch.setattr(torch.version, "cuda", torchs)
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parent / home))
    with pytest.raises(RuntimeError, match=rf"jit\.load: cuda=True, but .*{message}"):
        ie.jit.load(cuda=True)
    assert ie.info() == before and not nvcc.exists()


@pytest.mark.parametrize(("asked", "loaded"), [(None, True), (None, False), (False, True), (True, False)])
def test_load_chooses_whether_to_compile_for_cuda(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool | None, loaded: bool
) -> None:
    used = []
    if loaded:
        monkeypatch.setattr(_native, "cuda", (13010, "9.0"))
    monkeypatch.setattr(_native, "use_cuda_library", used.append)
    monkeypatch.setattr(_toolchain, "build_kernels", lambda name, **how: _native.library(name))
    monkeypatch.setattr(_toolchain, "build_cuda", lambda debug, verbose: tmp_path / f"cuda-{debug}-{verbose}")
    monkeypatch.setattr(_native, "_compiled", {})
    ie.jit.load(asked, debug=True, cuda=asked) if asked else ie.jit.load(cuda=asked)
    expected = {True: tmp_path / "cuda-True-True", None: tmp_path / "cuda-False-False"}
    assert used == ([expected[asked]] if asked or (asked is None and loaded) else [])
    if _native.module is not None:
        _native.module.let_stream(True)


def test_what_nvcc_says_comes_through(nvcc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache of $me"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a+PTX")
    before = ie.info()
    with pytest.raises(RuntimeError, match=r"operation\.cu\(7\): error: what nvcc says"):
        _toolchain.build_cuda()
    with pytest.raises(RuntimeError, match=r"(?s)Error building .inplace_ext_mine_.*what nvcc says"):
        _toolchain.build_cuda_operation("mine", "what nvcc would not read")
    assert ie.info() == before
    (command,) = (line for line in nvcc.read_text().splitlines() if "operation.cu" in line)
    assert "-gencode=arch=compute_86,code=sm_86 -gencode=arch=compute_90a,code=sm_90a" in command
    assert "code=compute_90a" in command and "-fmad=false" in command and "fast" not in command
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(ValueError, match=r"capabilities, such as 8\.0;9\.0\+PTX, got 'Hopper'"):
        _toolchain.build_cuda()
    # Of nothing that is said and no device, one architecture whose PTX later devices take.
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = _toolchain._cuda_arguments(debug=True).compile
    assert [flag for flag in flags if "gencode" in flag] == [
        "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_80,code=compute_80",
    ]  # fmt: skip
    assert "-lineinfo" in flags and "-G" not in flags


def test_without_nvcc_a_device_gets_torchs_functions(
    nvcc: Path, softclip_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens at the first tensor on a device, whose place one on the CPU takes here."""
    (defined,) = (d for d in ie.jit._defined.values() if d.function is softclip_)

    class OnDevice(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    x = torch.ones(3).as_subclass(OnDevice)
    monkeypatch.setattr(_native, "cuda", (13010, "9.0"))
    monkeypatch.setattr(_fuse, "takes", lambda tensors: not tensors[0].requires_grad)
    monkeypatch.setattr(defined, "on_cuda", None)
    for not_taken in (torch.ones(3), x.to(torch.int32), x.clone().requires_grad_()):
        assert not defined.ensure_on_cuda([not_taken]) and defined.on_cuda is None
    assert not nvcc.exists(), "nothing was compiled without need"
    with pytest.warns(
        RuntimeWarning, match="(?s)softclip_ goes through torch.* on CUDA devices: .*what nvcc says"
    ):
        assert not defined.ensure_on_cuda([x])
    assert defined.on_cuda is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not defined.ensure_on_cuda([x])  # once
    monkeypatch.setattr(defined, "on_cuda", None)
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parent / "nowhere"))
    with pytest.warns(RuntimeWarning, match=r"softclip_ goes .* on CUDA devices: .*no nvcc is on PATH"):
        assert not defined.ensure_on_cuda([x])


#: Everything that an expression may hold, one part for each value of `which`.
EVERY_PART = [
    *({1: f"{name}(x)", 2: f"{name}(x, y)", 3: f"{name}(x, y, which)"}[function.arguments]
      for name, function in FUNCTIONS.items()),
    "where(x > y, x, -y)", "x if isnan(x) or isinf(y) and not isfinite(x) else y", "x // y", "x % y",
    "x ** y", "x ** 3 + x ** 0.5 - x ** -0.5 * x ** -1 + x ** 2", "(x > 0) + (x != y) * 2.0",
    "inf - nan * pi * e / 2", "1.0 if ((x < 1) ^ (y >= 2)) | ~(x == y) & (x <= y) else 2", "+x - 3 * -y",
]  # fmt: skip


def every_part(parts: list[str]) -> str:
    text = "x"
    for number, part in enumerate(parts):
        text = f"{part} if which == {number} else ({text})"
    return text


@pytest.mark.slow
@pytest.mark.skipif(_build.find_toolkit() is None, reason="needs nvcc")
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("uint8", "int32", "int64")], ids="-".join)
def test_every_function_compiles_for_a_device(
    monkeypatch: pytest.MonkeyPatch, dtypes: tuple[str, ...]
) -> None:
    """By nvcc, of which warnings are errors; and the bindings take what it makes. Nothing runs."""
    parts = EVERY_PART
    if "int32" in dtypes:
        parts = [
            f"{name}{('(x)', '(x, y)', '(x, y, which)')[function.arguments - 1]}"
            for name, function in FUNCTIONS.items()
            if function.integers
        ]
        parts += ["where(x > y, x, -y)", "x * 3 - y", "x ** 3", "(x > 0) * 2"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setattr(_build, "missing_cuda", lambda: None)
    toolkit = _build.find_toolkit()
    assert toolkit is not None and _native.module is not None
    ctypes.CDLL(
        str(toolkit.home / "lib64" / "libcudart.so"), ctypes.RTLD_GLOBAL
    )  # as torch's CUDA build does
    name = f"every_{dtypes[-1]}_"
    own = ie.jit.elementwise(name, every_part(parts), tensors=["y"], scalars=["which"], dtypes=dtypes)
    (defined,) = (d for d in ie.jit._defined.values() if d.function is own)
    assert defined.code is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert defined.load_on_cuda(defined.code)


@checkout
@pytest.mark.slow
@pytest.mark.skipif(_build.find_toolkit() is None, reason="needs nvcc")
def test_load_compiles_for_cuda(own_sources: Path, tmp_path: Path) -> None:
    """As if torch were built with CUDA. Nothing runs on a device."""
    code = """
import ctypes, pathlib, torch
import inplace_ext as ie
from inplace_ext import _build, _info, _native, _toolchain
toolkit = _build.find_toolkit()
torch.version.cuda = ".".join(map(str, toolkit.version))
ctypes.CDLL(str(toolkit.home / "lib64" / "libcudart.so"), ctypes.RTLD_GLOBAL)
_toolchain.build_kernels = lambda name, **how: _native.library(name)  # the CPU's are another test's
assert ie.info().cuda_kernels is None and ie.info().backends["cuda"] == "torch"
info = ie.jit.load(cuda=True)
assert info.cuda == torch.version.cuda and info.cuda_architectures == ["8.0"] and info.cuda_reason is None
assert info.backends["cuda"] == f"own kernels ({_info.CUDA_SERVES}), else torch"
module = _native.module
assert all(map(module.cuda_serves, module.build_info()["operations"]))

# cuda=None goes on with them; a header that one source includes has this one compiled.
folder = pathlib.Path(info.cuda_kernels).parent
objects = {path: path.stat().st_mtime_ns for path in folder.glob("*.o")}
assert len(objects) == len(_build.source_files("cuda"))
assert ie.jit.load().cuda_kernels == info.cuda_kernels
with (_build.csrc() / "cuda" / "norm.cuh").open("a") as header:
    header.write("__attribute__((used)) static int changed;\\n")
again = ie.jit.load().cuda_kernels
assert again != info.cuda_kernels
assert [p.stem for p, time in objects.items() if p.stat().st_mtime_ns != time] == ["kernels"]
assert ie.jit.load(cuda=False).cuda_kernels == again
"""
    where = {
        "PYTHONPATH": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"),
        "TORCH_CUDA_ARCH_LIST": "8.0",
    }
    result = run(code, **where)
    assert result.returncode == 0, result.stdout + result.stderr


def test_jit_variable_says_what_it_takes() -> None:
    result = run("import inplace_ext", INPLACE_EXT_JIT="yes")
    assert result.returncode != 0 and "INPLACE_EXT_JIT must be 1, or debug or verbose" in result.stderr


@pytest.fixture
def own_sources(tmp_path: Path) -> Path:
    """A copy of the package with the sources beside it, to plant faults in."""
    package = tmp_path / "inplace_ext"
    unwanted = shutil.ignore_patterns("__pycache__", "csrc")
    shutil.copytree(Path(str(ie.__file__)).parent, package, ignore=unwanted)
    shutil.copytree(_build.csrc(), package / "csrc")
    return package


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, (before, text.count(before))
    path.write_text(text.replace(before, after))


def test_one_functor_is_compiled_alone(own_sources: Path, tmp_path: Path) -> None:
    functors = own_sources / "csrc/include/inplace_ext/functors.h"
    edit(functors, "return a * min(V(6), max(V(0), a + V(3))) / V(6);", "return a + V(41);")
    code = """
import torch
import inplace_ext as ie
assert "site-packages" not in ie.__file__
x = torch.ones(100)
ie.hardswish_(x)
assert x[0] != 42
ie.jit.load(ops=["hardswish_"])
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    assert set(ie.hardswish_(torch.ones(100, dtype=dtype)).tolist()) == {42.0}
    fused = ie.fuse(lambda x: ie.hardswish_(x.add_(1)).mul_(2))
    assert set(fused(torch.ones(100, dtype=dtype)).tolist()) == {86.0}
assert ie.relu_(torch.tensor([-1.0])).item() == 0  # the others are there
assert ie.exp_(torch.zeros(9)).tolist() == [1.0] * 9
"""
    result = run(code, PYTHONPATH=str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    edit(functors, "return a + V(41);", "return a + V(41)")
    result = run(code, PYTHONPATH=str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert result.returncode != 0
    assert re.search(r"functors\.h:\d+:\d+: error: expected .;", result.stderr), result.stderr


@checkout
@pytest.mark.slow
def test_load_compiles_swaps_and_reuses(own_sources: Path, tmp_path: Path) -> None:
    code = """
import pathlib, time, torch
import inplace_ext as ie
from inplace_ext import _native, testing
cache = pathlib.Path(ie.info().kernels).parents[1]
mine_ = ie.jit.elementwise("mine_", "x * 3")
fused_ = ie.fuse(lambda x: mine_(ie.hardswish_(x)))
assert fused_(torch.full((9,), 3.0)).tolist() == [9.0] * 9
assert testing.available_capabilities() == [ie.info().capability]
before = ie.info().kernels
assert str(cache) == str(pathlib.Path(before).parents[1]) and cache.name == "inplace_ext", before
assert _native.module.__file__.startswith(str(cache)), _native.module.__file__

begin = time.perf_counter()
assert ie.jit.load().kernels == before  # nothing has changed
taken = time.perf_counter() - begin

# A header that few files include: only they are compiled, also in a process that has compiled already.
csrc = pathlib.Path(ie.__file__).with_name("csrc")
objects = {path: path.stat().st_mtime_ns for path in pathlib.Path(before).parent.glob("*.o")}
users = {p.stem for p in (csrc / "cpu").glob("*.cpp") if '#include "rows.h"' in p.read_text()}
assert 0 < len(users) < len(objects)
with (csrc / "cpu" / "rows.h").open("a") as header:
    header.write("\\n__attribute__((used)) static int changed;\\n")
after = ie.jit.load().kernels
assert after != before
compiled = {path.stem for path, time in objects.items() if path.stat().st_mtime_ns != time}
assert compiled == users, compiled
assert fused_(torch.full((9,), 3.0)).tolist() == [9.0] * 9  # of the new library, with mine_ in it
assert testing.last_path().endswith(":program")
assert mine_(torch.ones(9)).tolist() == [3.0] * 9 and testing.last_path().endswith(":loop")
print(taken)
"""
    where = {
        "PYTHONPATH": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"),
        "INPLACE_EXT_JIT": "1",
    }
    result = run(code, **where)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 20
    # A second process finds everything as it is.
    begin = time.perf_counter()
    result = run("import inplace_ext as ie; print(ie.info().kernels)", **where)
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - begin < 60
    assert str(tmp_path / "cache") in result.stdout


@checkout
@pytest.mark.slow
def test_debug_checks_fire(own_sources: Path, tmp_path: Path) -> None:
    code = """
import torch
import inplace_ext as ie
ie.jit.load(debug=True)
a = torch.randn(40, 50)
ie.mul_(a, 2.0)
ie.add_(a[:, ::2], 1)
ie.mul_(a.t(), torch.randn(40))
ie.fuse(lambda x, y: x.mul_(2).add_(y).clamp_(0, 1))(a, torch.randn(50))
ie.copy_(torch.empty(40, 50, dtype=torch.float16), a)
ie.softmax_(a), ie.dropout_(a, 0.5)
print("sound", flush=True)
ie.mul_(a[:, ::2], 2.0)
print("survived")
"""
    where = {"PYTHONPATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    sound = run(code, **where)
    assert sound.returncode == 0 and "survived" in sound.stdout, sound.stderr
    # One element too many of each patch.
    patch = "const Patch patch{base + done * stride, n, stride, 1, 0, end, gap};"
    edit(own_sources / "csrc/cpu/execute.cpp", patch, patch.replace(", n,", ", n + 1,"))
    faulty = run(code.replace('print("sound", flush=True)', ""), **where)
    assert faulty.returncode == -6, faulty.stdout + faulty.stderr
    assert "execute.cpp:" in faulty.stderr and "it does not hold that lies_in_tensor" in faulty.stderr
