"""Operations of one's own on the emulated device: the source that nvcc gets, compiled by the C++ compiler.

The CPU's kernels of the same operation, which test_jit holds to the expression, are what it must equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import emulated
import pytest
import test_jit
import torch
from emulated import SECTOR, device, launches
from test_jit import FLOATS, cache, mix, same, softclip  # noqa: F401
from test_jit import mix_ as cpu_mix_  # noqa: F401
from test_jit import softclip_ as cpu_softclip_  # noqa: F401

import inplace_ext as ie
from inplace_ext import _native, testing

pytestmark = emulated.needs_device
#: As in test_emulated_programs.
WAYS = {"chosen": 0, "wide": 1, "lists": 2}
INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def softclip_(cpu_softclip_: Any) -> Any:  # noqa: F811
    emulated.load_operation(cpu_softclip_)
    return cpu_softclip_


@pytest.fixture(scope="module")
def mix_(cpu_mix_: Any) -> Any:  # noqa: F811
    """Of a tensor and a number, for an integer dtype too."""
    emulated.load_operation(cpu_mix_)
    return cpu_mix_


@pytest.fixture(scope="module")
def swish_() -> Any:
    """Costly: in the interpreters of all operations alone. Of two tensors, for float32."""
    function = ie.jit.elementwise(
        "swish3_", "x * sigmoid(beta * x) + exp(y) * erf(x)", tensors=["y", "beta"], dtypes=["float16"]
    )
    emulated.load_operation(function)
    return function


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    lib = emulated.library()
    lib.inplace_ext_emulate_programs(WAYS[request.param])
    lib.inplace_ext_emulate_counting(0)
    yield request.param
    lib.inplace_ext_emulate_programs(0)
    lib.inplace_ext_emulate_counting(1)


def numbers(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul(5).to(dtype)
    if n > 8 and dtype.is_floating_point:
        x[:5] = torch.tensor([NAN, INF, -INF, -0.0, 0.0])
    return x


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of functions that are within two ulp on both sides."""
    torch.testing.assert_close(got, wanted, rtol=4 * torch.finfo(got.dtype).eps, atol=0, equal_nan=True)


def path() -> str:
    return testing.last_path().removeprefix("emulated:")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sizes_and_ways(softclip_: Any, dtype: torch.dtype, way: str) -> None:
    taken = set()
    for n in (0, 1, 7, 8, 9, 700, 3001, 20_000):
        for offset in (0, 1):
            x = numbers(n + offset, dtype, n)[offset:]
            y = torch.empty(n + offset, dtype=dtype)[offset:].copy_(x)
            wanted, version = softclip(x, 3.0), y._version
            with device():
                assert softclip_(y, 3.0) is y and y._version == version + 1
                taken.add(path())
            same(y, wanted)
    assert {"wide": {"wide"}, "lists": {"listed"}, "chosen": {"flat", "across"}}[way] <= taken, taken


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_layouts_and_broadcasting(mix_: Any, dtype: torch.dtype) -> None:
    """The test of the CPU's kernels, which asserts that torch did none of it."""
    with device():
        test_jit.test_layouts_and_broadcasting(mix_, dtype)
        assert testing.last_path().startswith("emulated:")
        a = numbers(320, dtype, 1).view(4, 5, 16)
        mix_(a.transpose(0, 1)[:, 1:], numbers(16, dtype, 2))
        assert path() == "strided"
        mix_(a[:, :, ::3], 2)
        assert path() == "across"


def test_costly_operation_of_two_tensors(swish_: Any) -> None:
    for dtype in (torch.float32, torch.float16):
        x, y, beta = (numbers(3000, dtype, seed).view(50, 60).clamp_(-8, 8) for seed in (1, 2, 3))
        wanted = swish_(x.clone(), y[0], beta)
        assert testing.last_path() != "torch"
        with device(order="shuffled"):
            got = swish_(x.clone(), y[0], beta)
            assert path() == "strided"
        close(got, wanted)
    x = torch.ones(3, dtype=torch.float64)
    with device():
        swish_(x, 1.0, 2.0)  # a dtype without kernels
        assert testing.last_path() == "torch"


def test_promotion_and_errors(mix_: Any, softclip_: Any) -> None:
    x, y = torch.randn(9), torch.randn(9, dtype=torch.float64)
    with device():
        test_jit.test_promotion_is_torchs(mix_)
        same(mix_(x.clone(), y), torch.where(y > x, x + y * 2, y - x).float())
        assert path() == "flat"
        x = torch.randn(10)
        wanted = mix(x[1:], x[:-1].clone())
        mix_(x[1:], x[:-1])  # which share memory
        same(x[1:], wanted)
        for wrong in (lambda: softclip_(x, torch.ones(10)), lambda: mix_(x, torch.ones(2, 10))):
            before = x.clone()
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
            same(x, before)


def test_in_a_chain_of_the_tables_operations(softclip_: Any, way: str) -> None:
    twin = ie.jit.elementwise("softclip", test_jit.TEXT, scalars=["limit"])
    assert any(twin is d.twin and softclip_ is d.function for d in ie.jit._defined.values())

    @ie.fuse
    def chain_(x: torch.Tensor, y: torch.Tensor, limit: float) -> torch.Tensor:
        softclip_(x.mul_(2), limit)
        x.add_(twin(y, 2.0)).exp_()
        return ie.dropout_(x, 0.25, seed=3)

    for dtype in FLOATS:
        for shape, other in (((1003,), (1003,)), ((30, 40), (40,))):
            x, y = numbers(1200, dtype, 5)[: torch.Size(shape).numel()].view(shape), numbers(2000, dtype, 6)
            y = y[: torch.Size(other).numel()].view(other)
            wanted = chain_(x.clone(), y, 3.0)
            assert testing.last_path().endswith(":program")
            with device():
                got = chain_(x.clone(), y, 3.0)
                assert path() in ("flat", "strided", "across", "wide", "listed"), path()
            close(got, wanted)


def test_lists(softclip_: Any) -> None:
    step_ = ie.fuse(lambda x, y: softclip_(x.add_(y), 1.5))
    lists = [[torch.randn(n) for n in (3, 50, 7)] for _ in range(2)]
    wanted = [softclip(x + y, 1.5) for x, y in zip(*lists, strict=True)]
    with device():
        step_(*lists)
        assert path() == "flat"
    for got, want in zip(lists[0], wanted, strict=True):
        same(got, want)


def passes(f: Any) -> int:
    """How many kernels a call launches."""
    launches()
    with device():
        f()
        assert testing.last_path().startswith("emulated:"), testing.last_path()
    return len(launches())


def test_two_of_them_are_two_passes(softclip_: Any, mix_: Any) -> None:
    @ie.fuse
    def both_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        softclip_(x.mul_(3), 2.0)
        return softclip_(mix_(x, y).add_(1), 4.0)

    x, y = torch.randn(20, 30), torch.randn(30)
    wanted = softclip(mix(softclip(x * 3, 2.0), y.expand_as(x)) + 1, 4.0)
    same(both_(x.clone(), y), wanted)
    assert testing.last_path().endswith(":program")  # one pass on the CPU
    got = x.clone()
    assert passes(lambda: both_(got, y)) == 3
    same(got, wanted)


def test_a_value_is_in_the_pass_that_reads_it(softclip_: Any, mix_: Any) -> None:
    twin = ie.jit.elementwise("softclip", test_jit.TEXT, scalars=["limit"])
    sum_ = ie.fuse(lambda x, y: mix_(x.mul_(2), y).add_(twin(y, 2.0)).add_(twin(x, 1.0)))
    x, y = torch.randn(50), torch.randn(50)
    wanted = mix(x * 2, y) + softclip(y, 2.0)
    wanted = wanted + softclip(wanted, 1.0)
    got = x.clone()
    assert passes(lambda: sum_(got, y)) == 2
    same(got, wanted)


def test_two_of_them_and_a_value_between_run_one_by_one(softclip_: Any, mix_: Any) -> None:
    twin = ie.jit.elementwise("softclip", test_jit.TEXT, scalars=["limit"])

    @ie.fuse
    def between_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = twin(y, 2.0)
        return mix_(x.add_(1), z)

    x, y = torch.randn(50), torch.randn(50)
    wanted = mix(x + 1, softclip(y, 2.0))
    got = x.clone()
    assert passes(lambda: between_(got, y)) == 2 * 2  # rehearsed before
    same(got, wanted)


def test_it_moves_no_more_than_it_must(mix_: Any) -> None:
    x, y = torch.randn(1 << 16), torch.randn(1 << 16)
    launches()
    with device(processors=64, threads=2048):
        mix_(x, y)
    (launch,) = launches()
    row = x.numel() * 4 // SECTOR
    assert 2 * row <= launch.sectors_read <= 2.04 * row and row <= launch.sectors_written <= 1.02 * row
    assert launch.widest_read == launch.widest_write == 16


def test_it_must_be_the_operation_that_was_added(softclip_: Any, mix_: Any) -> None:
    """The bindings take the libraries that nvcc makes by the same function."""
    module = _native.module
    assert module is not None
    with pytest.raises(RuntimeError, match="is no kernel library"):
        module.load_cuda_operation(_code(softclip_), str(emulated.library_path()))
    with pytest.raises(IndexError, match="no operation was added under 3"):
        module.load_cuda_operation(3, str(emulated.operation_path(softclip_)))
    with pytest.raises(RuntimeError, match="holds another operation"):
        module.load_cuda_operation(_code(mix_), str(emulated.operation_path(softclip_)))
    module.load_cuda_operation(_code(softclip_), str(emulated.operation_path(softclip_)))


def _code(function: Any) -> int:
    code = emulated.defined(function).code
    assert code is not None
    return code
