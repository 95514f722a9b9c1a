"""fuse and Pipeline: values, what is traced, what is refused, and when a function runs as it is written."""

from __future__ import annotations

import math
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import CAPABILITIES, FLOATS, HALVES, LAYOUTS, make, matches, threads
from hypothesis import given, settings
from hypothesis import strategies as st

import inplace_ext as ie
from inplace_ext import testing

pytestmark = [
    pytest.mark.skipif(not CAPABILITIES, reason="no compiled module"),
    pytest.mark.usefixtures("one_thread"),
]
Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clones(args: tuple[Any, ...]) -> list[Any]:
    return [a.clone(memory_format=torch.preserve_format) if isinstance(a, torch.Tensor) else a for a in args]


def check(
    function: Function, *args: Any, path: str | None = "program", ulp: int = 0, fused: Function | None = None
) -> Function:
    """Runs the function as it is and fused, twice, on the same values, and compares everything."""
    fused = fused or ie.fuse(function)
    for _ in range(2):
        plain, ours = clones(args), clones(args)
        want, got = function(*plain), fused(*ours)
        took = testing.last_path()
        assert path is None or took.rpartition(":")[2] == path, took
        for a, b in zip(plain, ours, strict=True):
            if not isinstance(a, torch.Tensor):
                continue
            if ulp == 0:
                assert matches(b, a).all(), (b[~matches(b, a)], a[~matches(b, a)])
            else:
                eps = torch.finfo(a.dtype).eps
                torch.testing.assert_close(b, a, rtol=ulp * eps, atol=ulp * eps, equal_nan=True)
            assert a._version == b._version
        if isinstance(want, torch.Tensor):
            assert got is ours[next(i for i, a in enumerate(plain) if a is want)]
        else:
            assert type(want) is type(got)
    return fused


def normalize_(x: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return x.sub_(mean).div_(std).clamp_(-3, 3)


def sgd_(
    p: torch.Tensor, grad: torch.Tensor, buf: torch.Tensor, lr: float, momentum: float, decay: float = 0.0
) -> None:
    if decay != 0:
        grad = grad + decay * p
    buf.mul_(momentum).add_(grad)
    p.add_(buf, alpha=-lr)


def adamw_(
    p: torch.Tensor,
    grad: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.01,
) -> None:
    p.mul_(1 - lr * decay)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = (1 - beta2**step) ** 0.5
    p.addcdiv_(m, v.sqrt().div_(root).add_(eps), value=-lr / (1 - beta1**step))


def drop_(x: torch.Tensor, y: torch.Tensor, p: float, seed: int | None = 5, offset: int = 0) -> torch.Tensor:
    x.mul_(2).add_(y)
    return ie.dropout_(x, p, seed=seed, offset=offset).sub_(0.25)


# ---- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, dtype: torch.dtype, capability: str) -> None:
    for shape in ((7,), (3, 70), (2, 3, 4, 5)):
        x = make(shape, dtype, layout, seed=1)
        for mean in (
            0.5,
            make(shape[-1:], dtype),
            make((*shape[:-1], 1), dtype, layout),
            make(shape, dtype, "step"),
        ):
            plain = x.clone()
            want = normalize_(plain, mean, 2.0)
            y = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
            before = y
            assert ie.fuse(normalize_)(y, mean, 2.0) is before
            assert testing.last_path().endswith("program")
            assert matches(y, want).all(), (shape, layout)


def test_numbers_are_not_traced_again(capability: str) -> None:
    calls = []

    def f(x: torch.Tensor, a: float, n: int) -> torch.Tensor:
        calls.append(a)
        return x.mul_(a * 2 + 1).add_(n).sub_(a**n / (1 - a))

    fused = ie.fuse(f)
    for a, n in ((0.5, 2), (0.25, 3), (-3.5, 1)):
        x = torch.randn(50)
        want = x.clone().mul_(a * 2 + 1).add_(n).sub_(a**n / (1 - a))
        assert torch.equal(fused(x, a, n), want)
    assert len(calls) == 2  # with the numbers of the first call, and with stand-ins
    # Another type of number is another kind of arguments: integers promote otherwise.
    fused(torch.randn(3), 2, 2)
    assert len(calls) == 4
    with pytest.raises(ZeroDivisionError):
        fused(torch.randn(3), 1.0, 2)


def test_what_is_kept_of_a_call_holds_for_the_next(capability: str) -> None:
    """Numbers in every place, steps that are left out, values given twice: with the calls before in mind."""
    other = make((5,), torch.float32, seed=3)

    def numbers(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> None:
        x.mul_(a).clamp_(-b, b).addcmul_(y, y, value=a).lerp_(y, b)
        y.copy_(x).add_(x, alpha=b).masked_fill_(x > a, b)

    def overwritten(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> None:
        x.mul_(a).fill_(b).add_(y, alpha=a)
        y.mul_(a).copy_(x).mul_(b)

    def finds(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> None:
        x.mul_(a).add_(other).sub_(y, alpha=b)

    for function in (numbers, overwritten, finds):
        fused = ie.fuse(function)
        for a, b in ((0.5, 0.25), (0.25, 0.75), (0.75, 0.5), (0.5, 0.5)):
            for shapes in (((5,), (5,)), ((3, 5), (5,)), ((2, 3, 5), (3, 5))):
                if function is not finds and shapes[0] != shapes[1]:
                    continue
                x, y = (make(shape, torch.float32, seed=i) for i, shape in enumerate(shapes))
                want = x.clone(), y.clone()
                function(*want, a, b)
                fused(x, y, a, b)
                assert testing.last_path().endswith("program")
                torch.testing.assert_close((x, y), want, equal_nan=True)  # FMA differs by instruction set
        if function is not finds:  # one tensor as both
            x = make((5,), torch.float32, seed=1)
            plain = x.clone()
            function(plain, plain, 0.5, 0.25)
            fused(x, x, 0.5, 0.25)
            torch.testing.assert_close(x, plain, equal_nan=True)

    def each(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> None:
        x.add_(1)
        y.mul_(2)
        z.sub_(3)

    fused_each = ie.fuse(each)
    for chosen in ((0, 0, 1), (0, 1, 1), (0, 1, 0), (0, 1, 2), (0, 0, 0)):  # tensors given twice, in turn
        tensors = [torch.full((5,), float(i)) for i in range(3)]
        wanted = [t.clone() for t in tensors]
        each(*(wanted[i] for i in chosen))
        fused_each(*(tensors[i] for i in chosen))
        torch.testing.assert_close(tensors, wanted)
    other.data = other.data.double()  # the same object, of another dtype
    x, y = make((5,), torch.float32, seed=1), make((5,), torch.float32, seed=2)
    plain = x.clone()
    finds(plain, y, 0.5, 0.25)
    fused(x, y, 0.5, 0.25)
    torch.testing.assert_close(x, plain, equal_nan=True)


def test_numbers_that_decide_are_guarded(capability: str) -> None:
    fused = ie.fuse(sgd_)
    for decay in (0.0, 0.1, 0.0, 0.2):
        p, grad, buf = torch.randn(3, 100)
        expected = [t.clone() for t in (p, grad, buf)]
        sgd_(*expected, 0.1, 0.9, decay)
        fused(p, grad, buf, 0.1, 0.9, decay=decay)
        assert testing.last_path().endswith("program")
        torch.testing.assert_close(p, expected[0])
        torch.testing.assert_close(buf, expected[2])


@pytest.mark.parametrize(
    "use",
    [
        math.sqrt,
        math.floor,
        int,
        round,
        lambda a: math.isnan(a) + 1.5,
        lambda a: float(f"{a}"),
        lambda a: [2.0, a][1],
    ],
)
def test_numbers_used_behind_the_tracers_back(use: Callable[[float], float], capability: str) -> None:
    fused = ie.fuse(lambda x, a: x.mul_(use(a)).add_(1))
    for a in (4.0, 9.0, 2.25):
        x = torch.randn(20)
        want = x.clone().mul_(use(a)).add_(1)
        assert torch.equal(fused(x, a), want)
        assert testing.last_path().endswith("program")


def test_optimizers_are_torchs(capability: str) -> None:
    """Step for step, in values; the order of roundings is another."""
    torch.manual_seed(0)
    shapes = [(50,), (7, 9), (3, 4, 5)]
    start = [torch.randn(shape) for shape in shapes]
    ours = [p.clone() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in ours]
    optimizer = torch.optim.AdamW(theirs, lr=1e-2)
    step = ie.fuse(adamw_)
    for i in range(1, 11):
        for p, q, (m, v) in zip(ours, theirs, state, strict=True):
            q.grad = torch.randn_like(p)
            step(p, q.grad, m, v, i, lr=1e-2)
            assert testing.last_path().endswith("program")
        optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=2e-6, atol=1e-6)
    buffers = [torch.zeros_like(p) for p in start]
    ours, theirs = [p.clone() for p in start], [p.clone().requires_grad_() for p in start]
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01)
    step = ie.fuse(sgd_)
    for _ in range(10):
        for p, q, b in zip(ours, theirs, buffers, strict=True):
            q.grad = torch.randn_like(p)
            step(p, q.grad, b, 0.1, 0.9, 0.01)
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=2e-6, atol=1e-6)


def test_bytes_to_normalised_floats(capability: str) -> None:
    def f(out: torch.Tensor, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return out.copy_(image).sub_(mean).div_(std)

    image = torch.randint(0, 256, (2, 3, 33, 20), dtype=torch.uint8)
    for view in (image, image.contiguous(memory_format=torch.channels_last), image[..., ::2]):
        check(f, torch.empty(view.shape), view, torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5)


def test_comparisons_masks_and_choices(capability: str) -> None:
    def f(x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        inside = (x > 0) & (y < 0.5) | (x < -1) & keep
        x.masked_fill_(~inside, 0.25)
        x.copy_(torch.where(y > 0, x * 2, 1 - y))
        y.mul_(x != 0.25).add_((x >= y).to(y.dtype))
        return x

    for dtype in (torch.float32, torch.float64):
        x, y = torch.randn(2, 300, dtype=dtype)
        check(f, x, y, torch.rand(300) < 0.5)
    check(lambda x, y: x.eq_(y).mul_(3), torch.randint(0, 3, (99,)), torch.randint(0, 3, (99,)))
    check(lambda m, x: m.copy_(x > 0), torch.rand(50) < 0.5, torch.randn(50), path=None)


def test_operators_and_functions(capability: str) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x += y
        x *= 2
        x -= 1 - y
        x /= 3 - (-y).abs()
        ie.where_(x, y > 0, 7)
        ie.maximum_(x, y)
        F.relu(x, inplace=True)
        torch.clamp(x, max=5, out=x)
        torch.add(x, y, alpha=1, out=x)
        x.copy_(torch.minimum(x, y * y + 1)).square_()
        x.nan_to_num_(nan=0.5, posinf=2.0, neginf=-2.0)
        return x

    check(f, torch.randn(200), torch.randn(200))
    check(lambda x: x.copy_(1 / (1 + torch.exp(-x))), torch.randn(300), ulp=8)
    check(lambda x: x.copy_(F.gelu(F.silu(x)) + torch.sigmoid(x) * 2**x), torch.randn(300), ulp=16)
    check(lambda x: x.copy_(x.float() + x.clone()), torch.randn(50), path=None)
    check(lambda x: x.add_(torch.ones_like(x)).mul_(torch.full_like(x, 3.0)), torch.randn(50))
    check(lambda x: x.mul_(x).add_(x).sub_(x * x), torch.randn(50))


def test_every_operation_of_the_table_in_a_chain(capability: str) -> None:
    from table_samples import sample

    from inplace_ext._table import OPS

    count = 0
    for name, op in OPS.items():
        if (
            not op.native
            or op.alias_of
            or "float32" not in op.dtype_names
            or name in ("copy_", "fill_", "zero_")
        ):
            continue
        x, arguments = sample(op, torch.float32)
        keywords = {key: arguments[key] for key in arguments if key not in op.positional_names}
        positional = [value for key, value in arguments.items() if key not in keywords]
        tensors = [value for value in positional if isinstance(value, torch.Tensor)]

        def f(
            x: torch.Tensor, *given: Any, name: str = name, keywords: dict[str, Any] = keywords
        ) -> torch.Tensor:
            getattr(ie, name)(x.add_(1), *given, **keywords)
            return x.mul_(2)

        want = f(x.clone(), *positional)
        fused = ie.fuse(lambda x, *given: f(x, *given))
        got = fused(x.clone(), *positional)
        assert testing.last_path().endswith("program"), (name, testing.last_path(), len(tensors))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)
        count += 1
    assert count > 50


@pytest.mark.parametrize("dtype", HALVES)
def test_sixteen_bit_floats_are_rounded_once_or_each_time(dtype: torch.dtype, capability: str) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(1.1).add_(y).mul_(x)
        y.copy_(x * 0.3).sub_(x)
        return x.div_(3)

    x, y = torch.randn(2, 500).to(dtype)
    a, b = x.clone(), y.clone()
    ie.fuse(f)(a, b)
    assert testing.last_path().endswith("program")
    # In float32, with numbers rounded as torch rounds them for the dtype, and rounded once.
    wide_x, wide_y = x.float(), y.float()
    f(wide_x, wide_y)
    assert torch.equal(a, wide_x.to(dtype)) and torch.equal(b, wide_y.to(dtype))
    check(f, x, y, fused=ie.fuse(round_each=True)(f))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.int8, torch.bool])
def test_integers(dtype: torch.dtype, capability: str) -> None:
    x, y = torch.randint(0, 2 if dtype == torch.bool else 50, (2, 300)).to(dtype)
    if dtype == torch.bool:
        check(lambda x, y: x.mul_(y).add_(y).eq_(y), x, y)
        return
    check(lambda x, y: x.mul_(3).add_(y).sub_(7).clamp_(0, 100).remainder_(13), x, y)
    divisor = y + 1
    check(lambda x, y: x.div_(y, rounding_mode="floor").add_(1), x, divisor)
    before = x.clone()
    fused = ie.fuse(lambda x, y: x.add_(1).div_(y, rounding_mode="trunc"))
    divisor[77] = 0
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        fused(x, divisor)
    assert torch.equal(x, before)
    # A divisor that the function itself computes is torch's to look at.
    check(lambda x, y: x.div_(y.add_(1), rounding_mode="trunc"), before, y.clone(), path=None)


def test_several_compute_types_take_several_passes(capability: str) -> None:
    def f(x: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> None:
        n.add_(1).mul_(2)
        x.add_(n).mul_(0.5)
        d.copy_(x).sub_(1e-9)

    fused = check(f, torch.randn(100), torch.randint(0, 9, (100,)), torch.empty(100, dtype=torch.float64))
    assert fused is not None


def test_long_programs_are_split_and_too_many_temporaries_run_as_written(capability: str) -> None:
    def long(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for i in range(150):
            x.add_(i).mul_(0.5).sub_(y)
        return x

    check(long, torch.randn(100), torch.randn(100))

    def wide(x: torch.Tensor) -> torch.Tensor:
        parts = [x * i for i in range(12)]
        for part in parts:
            x.add_(part)
        return x

    check(wide, torch.randn(100), path="torch")

    def many(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            x.add_(other).mul_(0.5)
        return x

    check(many, torch.randn(100), *torch.randn(30, 100))


# ---- dropout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_in_a_chain(layout: str, dtype: torch.dtype, capability: str) -> None:
    fused = ie.fuse(drop_)
    for shape in ((1,), (7,), (2051,), (3, 70), (33, 65), (2, 3, 4, 5)):
        x = make(shape, dtype, layout, seed=1)
        for p, seed, offset in ((0.3, 5, 0), (0.5, -1, (1 << 32) - 2), (1, 2, 3), (0.0, 1, 0)):
            # Of p = 0 nothing is left of the dropout, and of p = 1 no number is kept.
            check(drop_, x, make(shape, dtype), p, seed, offset, fused=fused)
    check(drop_, make((), dtype), make((), dtype), 0.5, 3, fused=fused)
    check(drop_, make((0, 3), dtype), make((3,), dtype), 0.5, 3, path=None, fused=fused)


def test_dropout_in_a_chain_keeps_nan_and_inf(capability: str) -> None:
    x = make((1000,), torch.float32, specials=0)
    x[::3], x[1::7], x[2::5] = math.nan, math.inf, -0.0
    check(drop_, x, torch.zeros(1000), 0.5)


@pytest.mark.parametrize("dtype", HALVES)
def test_dropout_in_a_chain_of_sixteen_bit_floats(dtype: torch.dtype, capability: str) -> None:
    x, y = make((5000,), dtype), make((5000,), dtype)
    check(drop_, x, y, 0.3, fused=ie.fuse(drop_, round_each=True))
    rounded = drop_(x.float(), y.float(), 0.3).to(dtype)
    assert matches(ie.fuse(drop_)(x, y, 0.3), rounded).all()
    assert testing.last_path().endswith(":program")


def test_dropout_of_values_and_of_broadcast_ones(capability: str) -> None:
    def function(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> None:
        noise = ie.dropout(row * 2, 0.5, seed=1)  # a number of the mask for each column
        gate = ie.dropout(column + 1, 0.25, seed=2, offset=9)
        x.mul_(noise).add_(gate)
        ie.dropout_(x, 0.1, seed=3)

    for rows, columns in ((1, 1), (5, 3), (40, 100), (3, 700)):
        x, row, column = (
            make((rows, columns), torch.float32, specials=0),
            make((columns,), torch.float32, specials=0),
            make((rows, 1), torch.float32, specials=0),
        )
        check(function, x, row, column)
        check(function, x.t().contiguous().t(), row, column)


def test_seeds_come_from_the_generator_in_the_order_of_the_calls(capability: str) -> None:
    def function(x: torch.Tensor, generator: torch.Generator | None) -> None:
        ie.dropout_(x, 0.5)
        y = ie.dropout(x, 0.25, generator=generator)
        x.add_(y * 2)
        ie.dropout_(x, 0.1, offset=1)

    fused = ie.fuse(function)
    for own in (None, torch.Generator()):
        start = make((1000,), torch.float32, specials=0)
        results = []
        for run in (function, fused, fused):
            torch.manual_seed(3)
            if own is not None:
                own.manual_seed(4)
            x = start.clone()
            run(x, own)
            assert testing.last_path().endswith(":program") or run is function
            results.append((x, torch.get_rng_state(), None if own is None else own.get_state()))
        for x, state, owns in results[1:]:
            assert torch.equal(x, results[0][0])
            assert torch.equal(state, results[0][1])
            assert own is None or torch.equal(owns, results[0][2])
    # Each call draws anew.
    a, b = torch.ones(1000), torch.ones(1000)
    fused(a, None), fused(b, None)
    assert not torch.equal(a, b)
    # What is wrong is found before a seed is drawn, and running as written draws no other.
    state = torch.get_rng_state()

    def wrong(x: torch.Tensor, y: torch.Tensor) -> None:
        ie.dropout_(x, 0.5)
        x.add_(y)

    with pytest.raises(RuntimeError, match="broadcast"):
        ie.fuse(wrong)(torch.ones(4), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)
    x, y = torch.ones(300), torch.ones(300)
    function_of_double = ie.fuse(lambda x: ie.dropout_(x.lgamma_().add_(1), 0.5))  # without a kernel
    function_of_double(x)
    torch.set_rng_state(state)
    assert torch.equal(ie.dropout_(y.lgamma_().add_(1), 0.5), x)


def test_torchs_dropout_is_drawn_as_this_package_does(capability: str) -> None:
    def theirs(x: torch.Tensor, y: torch.Tensor) -> None:
        F.dropout(x, 0.5, training=True, inplace=True)
        torch.dropout_(x, 0.5, train=True)
        x.add_(F.dropout(y, 0.25) + torch.dropout(y, 0.25, False))

    def ours(x: torch.Tensor, y: torch.Tensor) -> None:
        ie.dropout_(ie.dropout_(x, 0.5), 0.5)
        x.add_(ie.dropout(y, 0.25) + y)

    x, y = make((777,), torch.float32, specials=0), make((777,), torch.float32, specials=0)
    results = []
    for function in (ie.fuse(theirs), ours):
        torch.manual_seed(1)
        results.append(x.clone())
        function(results[-1], y)
    assert torch.equal(*results)


def test_dropout_in_lists_pipelines_and_where_it_does_not_fit(capability: str) -> None:
    pipeline = ie.Pipeline().mul_(2).dropout_(0.5, seed=3)
    x = make((100,), torch.float32, specials=0)
    dropped = pipeline(x.clone())
    assert testing.last_path().endswith(":program")
    assert torch.equal(dropped, ie.dropout_(x * 2, 0.5, seed=3))
    assert repr(pickle.loads(pickle.dumps(pipeline))) == "Pipeline().mul_(2).dropout_(0.5, seed=3)"

    def function(x: torch.Tensor) -> torch.Tensor:
        return ie.dropout_(x.mul_(2), 0.5)

    lists = [
        [make((n,), torch.float32, seed=n, specials=0) for n in (3, 500, 500, 1, 70000)] for _ in range(2)
    ]
    fused = ie.fuse(function)
    for count in (1, 2):
        with threads(count):
            torch.manual_seed(count)
            for tensor in lists[0]:
                function(tensor)
            torch.manual_seed(count)
            fused(lists[1])
            assert testing.last_path().endswith(":program")
            for a, b in zip(*lists, strict=True):
                assert torch.equal(a, b)

    def features(x: torch.Tensor) -> torch.Tensor:
        return ie.feature_dropout_(x.mul_(2), 0.5, seed=1)

    check(features, make((4, 5, 6), torch.float32, specials=0), path="draws")
    for bad, error in ((2.0, ValueError), ("a", TypeError)):
        x = torch.ones(4)
        with pytest.raises(error, match="p must"):
            ie.fuse(lambda x, bad=bad: ie.dropout_(x.mul_(2), bad))(x)
        with pytest.raises(error, match="p must"):
            ie.fuse(lambda x, p: ie.dropout_(x.mul_(2), p))(x, bad)
        assert torch.equal(x, torch.ones(4))
    with pytest.raises(ValueError, match="exclude"):
        ie.fuse(lambda x: ie.dropout_(x.mul_(2), seed=1, generator=torch.default_generator))(x)
    assert torch.equal(x, torch.ones(4))


def test_many_dropouts_take_several_passes(capability: str) -> None:
    def function(x: torch.Tensor) -> None:
        for i in range(11):
            ie.dropout_(x.add_(1), 0.1, seed=i)

    check(function, make((1000,), torch.float32, specials=0))


# ---- random programs --------------------------------------------------------------------------------------

BINARY = ["add", "sub", "mul", "div", "maximum", "minimum"]
UNARY = ["neg", "abs", "relu", "square", "floor", "trunc", "sign", "reciprocal"]


def random_function(seed: int, stages: int, tensors: int) -> Function:
    """A function of that many operations on tensors and a number, the same in each call."""

    def f(*args: Any) -> torch.Tensor:
        rng = random.Random(seed)
        *values, number = args
        values = list(values)
        changed = values[0]
        for _ in range(stages):
            kind = rng.randrange(8)
            x = rng.choice(values)
            y = rng.choice([*values, number, rng.choice([0.5, -2.0, 3])])
            if kind < 3:
                target = rng.choice(values)
                name = rng.choice(BINARY[:4])
                getattr(target, f"{name}_")(y)
            elif kind == 3:
                getattr(rng.choice(values), rng.choice([u for u in UNARY]) + "_")()
            elif kind == 4:
                name = rng.choice(BINARY)
                other = rng.choice(values) if "imum" in name else y
                values.append(getattr(torch, name)(x, other))
            elif kind == 5:
                values.append(getattr(torch, rng.choice(UNARY))(x))
            elif kind == 6:
                values.append(torch.where(x > rng.choice([0.0, 0.5]), rng.choice(values), rng.choice(values)))
            else:
                rng.choice(values).masked_fill_(x < 0, rng.choice([1.5, number]))
            if len(values) > tensors + 4:
                del values[tensors]
        return changed

    return f


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    stages=st.integers(1, 30),
    tensors=st.integers(1, 6),
    length=st.sampled_from([1, 7, 64, 130, 513, 1100]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    capability=st.sampled_from(CAPABILITIES or ["none"]),
)
def test_random_programs(
    seed: int, stages: int, tensors: int, length: int, dtype: torch.dtype, capability: str
) -> None:
    f = random_function(seed, stages, tensors)
    torch.manual_seed(seed % 1000)
    args = (*torch.randn(tensors, length, dtype=dtype), 1.25)
    with testing.use_capability(capability):
        check(f, *args, path=None)
        assert testing.last_path() != ""


# ---- what is refused --------------------------------------------------------------------------------------

TABLE = torch.ones(5)


def reads(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        x.add_(1)
    return x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (reads, "sum is not elementwise"),
        (lambda x: x.mul_(x.max()), "max is not elementwise"),
        (lambda x: x.mul_(x.item()), "item() reads data"),
        (lambda x: x.add_(1) if x[0] else x, "__getitem__ is not elementwise"),
        (lambda x: x.add_(1) if x > 0 else x, "bool() reads data"),
        (lambda x: [x.add_(v) for v in x], "iter() reads data"),
        (lambda x: x * 2, "returns what is not one of its arguments"),
        (lambda x: 3, "returns what is not one of its arguments"),
        (lambda x: x.add_(torch.rand_like(x)), "rand_like() would be drawn once"),
        (lambda x: x.add_(torch.rand(5)), "rand() would be drawn once"),
        (lambda x: x.t_(), "t_ is not elementwise"),
        (lambda x: x.cumsum_(0), "cumsum_ is not elementwise"),
        (lambda x: ie.softmax_(x), "softmax_ is not elementwise"),
        (lambda x: x.add_(F.dropout(torch.ones(1))), "dropout() would be drawn once"),
        (lambda x: TABLE.add_(x), "add_ changes a tensor that is not an argument"),
        (lambda x: TABLE.add_(1), "add_ changes a tensor that is not an argument"),
        (lambda x: x @ x, "matmul is not elementwise"),
    ],
)
def test_what_cannot_be_fused(function: Function, message: str) -> None:
    x, table = torch.randn(5), TABLE.clone()
    before = x.clone()
    fused = ie.fuse(function)
    for _ in range(2):
        with pytest.raises(ie.FuseError) as caught:
            fused(x)
        assert message in str(caught.value)
        assert "returns" in message or "test_fuse.py:" in str(caught.value)
        assert torch.equal(x, before) and x._version == 0 and torch.equal(TABLE, table)


def test_errors_of_the_function_come_before_anything_is_written(capability: str) -> None:
    fused = ie.fuse(lambda x, y: x.add_(1).mul_(y).sub_(2))
    x = torch.randn(4, 5)
    before = x.clone()
    fused(torch.randn(4, 5), torch.randn(5))
    for bad in (torch.randn(4), torch.randn(2, 4, 5)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"shape|size"):
                fused(x, bad)
            assert torch.equal(x, before) and x._version == 0
    ints = torch.ones(4, 5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="can't be cast"):
        fused(ints, torch.randn(5))
    expanded = torch.ones(1).expand(5)
    with pytest.raises(RuntimeError, match="single memory location"):
        fused(expanded, torch.randn(5))
    assert (ints == 1).all() and (expanded == 1).all()
    with pytest.raises(TypeError):
        fused(x)
    with pytest.raises(TypeError):
        fused(x, 1, z=3)


# ---- when it runs as it is written ------------------------------------------------------------------------


def test_runs_as_written_where_the_engine_does_not_apply() -> None:
    fused = ie.fuse(normalize_)
    # Something to record.
    leaf = torch.randn(20, requires_grad=True)
    y = fused(leaf * 1, 0.5, 2.0)
    assert y.grad_fn is not None and testing.last_path() == "torch"
    y.sum().backward()
    assert leaf.grad is not None
    with torch.no_grad():
        fused(leaf, 0.5, 2.0)
        assert testing.last_path().endswith("program")
    with pytest.raises(RuntimeError, match="leaf Variable"):
        fused(leaf, 0.5, 2.0)
    # A subclass, a mode, a transform, a fake tensor, another device, a complex number.
    sub = torch.randn(4).as_subclass(type("Sub", (torch.Tensor,), {}))
    assert fused(sub, 0.5, 2.0) is sub
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.randn(4)
    with Mode():
        fused(x, 0.5, 2.0)
    assert seen[:3] == ["sub_", "div_", "clamp_"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(
        torch.func.vmap(lambda t: fused(t, 0.5, 2.0))(x.clone()), normalize_(x.clone(), 0.5, 2.0)
    )
    with torch._subclasses.FakeTensorMode():
        assert fused(torch.empty(3), 0.5, 2.0).shape == (3,)
    assert fused(torch.empty(3, device="meta"), 0.5, 2.0).device.type == "meta"
    z = torch.randn(3, dtype=torch.complex64)
    assert torch.equal(ie.fuse(lambda z: z.mul_(2).add_(1))(z.clone()), z * 2 + 1)
    # An operation without a kernel of its own, and tensors of two shapes that are changed.
    check(lambda x: x.mul_(2).tan_(), torch.randn(9), path="torch")
    check(lambda x, y: [x.add_(1), y.mul_(2)][2:] or None, torch.randn(9), torch.randn(3), path="torch")
    with testing.native_disabled():
        check(normalize_, torch.randn(9), 0.5, 2.0, path="torch")


def test_a_tensor_given_twice_or_that_shares_memory(capability: str) -> None:
    fused = ie.fuse(lambda x, y: x.add_(y).mul_(y))

    def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.add_(y).mul_(y)

    for views in (
        lambda b: (b, b),
        lambda b: (b, b.view(b.shape)),
        lambda b: (b, b[:1]),
        lambda b: (b[:, 1:], b[:, :-1]),
        lambda b: (b, b.t()),
        lambda b: (b[::2], b[1::2]),
    ):
        base = torch.arange(1.0, 37.0).view(6, 6)
        expected, ours = base.clone(), base.clone()
        try:
            plain(*views(expected))
        except RuntimeError:
            with pytest.raises(RuntimeError):
                fused(*views(ours))
            continue
        fused(*views(ours))
        assert torch.equal(ours, expected)


def test_inference_mode_and_compile() -> None:
    fused = ie.fuse(normalize_)
    with torch.inference_mode():
        x = torch.randn(9)
        fused(x, 0.5, 2.0)
        assert testing.last_path().endswith("program")
    before = x.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        fused(x, 0.5, 2.0)
    assert torch.equal(x, before)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fused(x, 0.5, std=2.0).add_(1), fullgraph=True, backend="aot_eager")
    y = torch.randn(9)
    want = normalize_(y.clone(), 0.5, 2.0).add_(1)
    torch.testing.assert_close(compiled(y), want)
    pipeline = ie.Pipeline().sub_(0.5).div_(torch.tensor(2.0)).clamp_(-3, 3)
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    y = torch.randn(9)
    torch.testing.assert_close(compiled(y.clone()), normalize_(y, 0.5, 2.0))


# ---- calls ------------------------------------------------------------------------------------------------


def test_signature_defaults_and_names(capability: str) -> None:
    def f(x: torch.Tensor, /, a: float = 2.0, *, b: float = 1.0) -> torch.Tensor:
        """Doc."""
        return x.mul_(a).add_(b)

    fused = ie.fuse(f)
    assert (fused.__name__, fused.__doc__) == ("f", "Doc.")
    for kwargs in ({}, {"a": 3.0}, {"b": 5.0}, {"a": 0.5, "b": 0.25}):
        x = torch.randn(9)
        assert torch.equal(fused(x.clone(), **kwargs), f(x, **kwargs))
        assert testing.last_path().endswith("program")
    with pytest.raises(TypeError, match="name the arguments"):
        ie.fuse(lambda x, **kwargs: x)
    with pytest.raises(TypeError, match="expected a function"):
        ie.fuse(3)  # type: ignore[call-overload]


def test_shapes_that_the_function_asks_for_are_part_of_the_trace(capability: str) -> None:
    fused = ie.fuse(lambda x: x.div_(x.numel()).add_(x.shape[0]) if x.dim() == 1 else x.add_(1))
    for n in (4, 9, 4):
        x = torch.randn(n)
        assert torch.equal(fused(x.clone()), x.clone().div_(n).add_(n))
    x = torch.randn(2, 2)
    assert torch.equal(fused(x.clone()), x + 1)


def test_tensors_from_outside_and_of_no_dims(capability: str) -> None:
    table = torch.randn(5)
    fused = ie.fuse(lambda x, k: x.mul_(table).add_(k).sub_(1))
    for k in (torch.tensor(2.0), torch.tensor(3.0)):
        x = torch.randn(4, 5)
        assert torch.equal(fused(x.clone(), k), x * table + k - 1)
        assert testing.last_path().endswith("program")
        table.add_(1)  # read anew in each call
    check(lambda x: x.mul_(2).add_(1), torch.tensor(3.0))
    check(lambda x: x.mul_(2).add_(1), torch.empty(0, 3), path=None)


def test_nested_and_threads(capability: str) -> None:
    inner = ie.fuse(normalize_)
    fused = ie.fuse(lambda x: inner(x, 0.5, 2.0).add_(1))
    x = torch.randn(100)
    assert torch.equal(fused(x.clone()), normalize_(x.clone(), 0.5, 2.0).add_(1))
    assert testing.last_path().endswith("program")
    failed = []
    shared = ie.fuse(lambda x, y, a: x.mul_(a).add_(y * 2).clamp_(-1, 1))

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for i in range(60):
            n = 1000 + 7000 * (i % 3)
            x, y = torch.randn(2, n, generator=g, dtype=(torch.float32, torch.float64)[i % 2])
            want = x.clone().mul_(seed + 0.5).add_(y * 2).clamp_(-1, 1)
            if not torch.equal(shared(x, y, seed + 0.5), want):
                failed.append((seed, i))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_change_no_bit(dtype: torch.dtype, capability: str) -> None:
    fused = ie.fuse(lambda x, y: x.mul_(1.1).add_(torch.exp(y)).div_(3))
    x, y = torch.randn(2, 300, 500).to(dtype)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(fused(x.clone(), y))
    assert all(matches(results[0], other).all() for other in results[1:])


def test_explain(capsys: pytest.CaptureFixture[str], capability: str) -> None:
    x = torch.randn(1000)
    before = x.clone()
    fused = ie.fuse(normalize_)
    fused.explain(x, 0.5, std=2.0)  # type: ignore[attr-defined]
    text = capsys.readouterr().out
    assert torch.equal(x, before) and x._version == 0
    for part in (
        "pass 1 of 1",
        "sub_",
        "0.5",
        "clamp_",
        "-3, 3",
        "8,000 bytes",
        "eager: 3 passes, 24,000 bytes",
    ):
        assert part in text
    ie.fuse(lambda x: x.tan_()).explain(x)  # type: ignore[attr-defined]
    assert "runs as it is written: tan_ has no kernel" in capsys.readouterr().out
    fused.explain(x.clone().requires_grad_() * 1, 0.5, 2.0)  # type: ignore[attr-defined]
    assert "gradients" in capsys.readouterr().out


# ---- Pipeline ---------------------------------------------------------------------------------------------


def test_pipeline(capability: str) -> None:
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    pipeline = ie.Pipeline().sub_(mean).div_(std).clamp_(0, max=1)
    x = torch.randn(2, 3, 8, 8)
    want = x.clone().sub_(mean).div_(std).clamp_(0, 1)
    for p in (pipeline, pickle.loads(pickle.dumps(pipeline)), torch.nn.Sequential(pipeline)):
        y = x.clone()
        assert p(y) is y and torch.equal(y, want)
        assert testing.last_path().endswith("program")
    assert not pipeline.state_dict() and len(list(pipeline.buffers())) == 2
    assert repr(ie.Pipeline().sub_(1.5).mul_(torch.tensor([1.0, 2.0])).clamp_(0, max=1)) == (
        "Pipeline().sub_(1.5).mul_(tensor([1.0, 2.0])).clamp_(0, max=1)"
    )
    assert "<float32 tensor of shape (5,)>" in repr(ie.Pipeline().add_(torch.zeros(5)))
    shorter = ie.Pipeline().mul_(2)
    longer = shorter.add_(1)
    assert torch.equal(shorter(torch.ones(3)), torch.full((3,), 2.0))
    assert torch.equal(longer(torch.ones(3)), torch.full((3,), 3.0))
    assert torch.equal(ie.Pipeline()(torch.ones(3)), torch.ones(3))
    double = ie.Pipeline().sub_(mean).to(torch.float64)
    assert next(double.buffers()).dtype == torch.float64
    with pytest.raises(AttributeError, match="sum_ is no elementwise operation"):
        ie.Pipeline().sum_()
    with pytest.raises(TypeError, match=r"add_\(input, other, \*, alpha=1\)"):
        ie.Pipeline().add_()
    with pytest.raises(AttributeError):
        _ = ie.Pipeline().nothing


def _worker(pipeline: ie.Pipeline) -> list[float]:
    result: list[float] = pipeline(torch.tensor([1.0, 2.0, 9.0])).tolist()
    return result


def test_pipeline_in_another_process() -> None:
    import multiprocessing

    pipeline = ie.Pipeline().sub_(torch.tensor(1.0)).div_(2).clamp_(-3, 3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_worker, [pipeline]) == [[0.0, 0.5, 3.0]]


# ---- lists ------------------------------------------------------------------------------------------------


def each(function: Function, *args: Any) -> None:
    """The function on the elements of lists, one call for each."""
    count = next(len(a) for a in args if isinstance(a, (list, tuple)))
    for i in range(count):
        function(*(a[i] if isinstance(a, (list, tuple)) else a for a in args))


def deep(args: tuple[Any, ...]) -> list[Any]:
    return [[t.clone() for t in a] if isinstance(a, list) else a for a in args]


def check_lists(function: Function, *args: Any, path: str = "program", count: int = 2) -> None:
    fused = ie.fuse(function)
    for workers in (1, count):
        with threads(workers):
            plain, single, ours = deep(args), deep(args), deep(args)
            each(function, *plain)
            each(fused, *single)
            assert fused(*ours) is None
            assert testing.last_path().rpartition(":")[2] == path
        for a, b, c in zip(plain, single, ours, strict=True):
            if isinstance(a, list):
                for i, (t, s, u) in enumerate(zip(a, b, c, strict=True)):
                    assert matches(u, s).all(), i
                    # The baseline rounds twice: where a sum cancels, it is off by an ulp of its terms.
                    torch.testing.assert_close(u, t, rtol=1e-6, atol=1e-6, msg=f"{i}")
                    assert u._version == t._version


def test_lists(capability: str) -> None:
    torch.manual_seed(0)
    same = [[torch.randn(64) for _ in range(300)] for _ in range(4)]
    same[3] = [t.abs() for t in same[3]]
    check_lists(sgd_, *same[:3], 0.1, 0.9)
    check_lists(adamw_, *same, 3)
    shapes = [(5,), (3, 4), (), (0,), (1,), (70000,), (2, 3, 4), (200, 300), (1, 1), (5,), (5,)]
    mixed = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    check_lists(sgd_, *mixed, 0.1, 0.9, count=3)
    check_lists(sgd_, *mixed, 0.1, 0.9, 0.01, count=5)
    dtypes = [
        [t.to((torch.float32, torch.float64, torch.bfloat16)[i % 3]) for i, t in enumerate(a)] for a in mixed
    ]
    fused = ie.fuse(round_each=True)(sgd_)
    plain, ours = deep(tuple(dtypes)), deep(tuple(dtypes))
    each(sgd_, *plain, 0.1, 0.9)
    fused(*ours, 0.1, 0.9)
    for a, b in zip(plain, ours, strict=True):
        for t, u in zip(a, b, strict=True):
            torch.testing.assert_close(u, t)
    strided = [[torch.randn(40, 6)[:, ::2].t() for _ in range(9)] for _ in range(3)]
    check_lists(sgd_, *strided, 0.1, 0.9)
    # An operand for all of them, and one that broadcasts.
    check_lists(
        lambda x, y: (x.add_(y).mul_(2), None)[1], [torch.randn(7, 5) for _ in range(9)], torch.randn(5)
    )
    # Neighbours that differ in nothing but their places, as all there is or between others, on threads too.
    for other in ((5,), (7, 1), (1, 5), (1, 1), (7, 5)):
        pair = [[torch.randn(7, 5) for _ in range(9)], [torch.randn(other) for _ in range(9)]]
        check_lists(lambda x, y: (x.add_(y).mul_(2).sub_(y), None)[1], *pair)
    sizes = [n for n in (5, 64, 1000, 1000, 20000, 64, 17, 0, 3) for _ in range(1 + n % 7)]
    uneven = [[torch.randn(n) for n in sizes] for _ in range(3)]
    for count in (2, 3):
        check_lists(sgd_, *uneven, 0.1, 0.9, count=count)
    layouts = [[torch.randn(6, 5), torch.randn(5, 6).t(), torch.randn(6, 5)] * 3 for _ in range(2)]
    layouts[1] = layouts[1][1:] + layouts[1][:1]  # copies of each keep its strides
    check_lists(sgd_, *layouts, [torch.randn(6, 5) for _ in range(9)], 0.1, 0.9)
    fused = ie.fuse(normalize_)
    xs = [torch.randn(9) for _ in range(3)]
    assert fused(xs, 0.5, 2.0) is xs
    ys = tuple(torch.randn(9) for _ in range(3))
    assert fused(ys, 0.5, 2.0) is ys


def test_lists_with_shared_memory_run_in_order(capability: str) -> None:
    base = torch.randn(4, 90000)
    for views in (
        lambda b: [b[0], b[0], b[1]],
        lambda b: [b.view(-1)[:200000], b.view(-1)[100000:300000], b[3]],
        lambda b: [b[i] for i in range(4)],
    ):
        for workers in (1, 2, 3):
            expected, ours = base.clone(), base.clone()
            each(lambda x: x.mul_(1.5).add_(1).mul_(x), views(expected))
            with threads(workers):
                ie.fuse(lambda x: (x.mul_(1.5).add_(1).mul_(x), None)[1])(views(ours))
            assert torch.equal(ours, expected)
    # What one element writes and another reads.
    x = torch.randn(2, 100000)
    for workers in (1, 2):
        expected, ours = x.clone(), x.clone()
        each(lambda a, b: a.add_(b).mul_(2), [expected[0], expected[1]], [expected[1], expected[0]])
        with threads(workers):
            ie.fuse(lambda a, b: (a.add_(b).mul_(2), None)[1])([ours[0], ours[1]], [ours[1], ours[0]])
        assert torch.equal(ours, expected)


def test_lists_that_do_not_fit() -> None:
    fused = ie.fuse(lambda x, y: (x.add_(1).mul_(y), None)[1])
    xs, ys = [torch.randn(3) for _ in range(3)], [torch.randn(3) for _ in range(3)]
    before = [x.clone() for x in xs]
    with pytest.raises(ValueError, match="the lists have 3 and 2 tensors"):
        fused(xs, ys[:2])
    with pytest.raises(RuntimeError, match=r"shape|size"):
        fused(xs, [*ys[:2], torch.randn(4)])
    with pytest.raises(RuntimeError, match="can't be cast"):
        fused([*xs[:2], torch.ones(3, dtype=torch.int64)], ys)
    assert all(torch.equal(x, b) for x, b in zip(xs, before, strict=True))
    # Something to record: as it is written, for each.
    leaves = [torch.randn(3, requires_grad=True) for _ in range(2)]
    values = [leaf * 1 for leaf in leaves]
    fused(values, 2.0)
    assert testing.last_path() == "torch" and all(v.grad_fn is not None for v in values)
    with testing.native_disabled():
        fused(xs, ys)
    torch.testing.assert_close(xs, [(b + 1) * y for b, y in zip(before, ys, strict=True)])


def test_lists_of_parameters_of_a_model(capability: str) -> None:
    """A step of torch.optim.SGD on a small network."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    model(torch.randn(5, 8)).square().sum().backward()
    ours = [p.detach().clone() for p in model.parameters()]
    grads = [p.grad for p in model.parameters()]
    buffers = [torch.zeros_like(p) for p in ours]
    step = ie.fuse(sgd_)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        step(ours, grads, buffers, 0.1, 0.9)
        assert testing.last_path().endswith("program")
        optimizer.step()
    for p, q in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(p, q.detach())
    with torch.no_grad():
        step(list(model.parameters()), grads, buffers, 0.1, 0.9)
        assert testing.last_path().endswith("program")
