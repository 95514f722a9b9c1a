"""Calls that torch carries out: the package without its compiled module, and the error messages."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from table_samples import sample
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import inplace_ext as ie
from inplace_ext import _errors, _ops, testing
from inplace_ext._delegate import torch_method
from inplace_ext._table import OPS

#: The functions of a package without compiled module, whether it has one or not.
FALLBACK = {name: _ops._fallback(op) for name, op in OPS.items()}


def run_python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_package_without_compiled_module_warns_once_and_works():
    output = run_python(
        """
        import sys, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import inplace_ext as ie
            import inplace_ext.testing
            from inplace_ext import add_
        assert [w.category for w in caught] == [RuntimeWarning], caught
        assert "pip install" in str(caught[0].message)
        assert caught[0].filename == "<string>", caught[0].filename  # the line that imports the package

        import torch
        from inplace_ext import testing
        assert "torch._dynamo" not in sys.modules
        x = torch.tensor([1.0, 2.0])
        assert add_(x, 10, alpha=2) is x and x.tolist() == [21.0, 22.0]
        assert not ie.info().native and "INPLACE_EXT_DISABLE_NATIVE" in ie.info().reason
        assert testing.last_path() == "torch" and testing.available_capabilities() == []
        with testing.native_disabled():
            ie.mul_(x, 2)
        try:
            with testing.use_capability("baseline"):
                raise AssertionError
        except RuntimeError as error:
            print(error)
        """,
        INPLACE_EXT_DISABLE_NATIVE="1",
    )
    assert "'baseline' is not available" in output


@pytest.mark.parametrize("name", list(OPS))
def test_fallback_is_torchs_method(name):
    op = OPS[name]
    dtype = getattr(torch, "float32" if "float32" in op.dtype_names else op.dtype_names[0])
    x, arguments = sample(op, dtype)
    expected = torch_method(op)(x.clone(), *arguments.values())
    assert FALLBACK[name](x, *arguments.values()) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)


def test_copy_takes_both_of_torchs_names_for_its_source():
    for name in ("src", "other"):
        for function in (ie.copy_, FALLBACK["copy_"]):
            assert function(torch.zeros(2), **{name: torch.ones(2)}).tolist() == [1, 1]


def expanded() -> torch.Tensor:
    return torch.ones(1).expand(3)


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


INTS, FLOATS, BOOLS = torch.tensor([4, 5, 6]), torch.ones(3), torch.tensor([True, False, True])
BUFFER = torch.ones(4)
ERRORS = [
    ("add_", (INTS, 1.5), {}, "Convert the operand"),
    ("exp_", (INTS,), {}, "Convert the operand"),
    ("lerp_", (FLOATS, FLOATS.double(), 1), {}, "Convert the operand"),
    ("add_", (FLOATS, torch.ones(2, 3)), {}, "keeps the shape of input"),
    ("add_", (FLOATS, torch.ones(4)), {}, "keeps the shape of input"),
    ("add_", (torch.ones(3, requires_grad=True), 1), {}, "torch.no_grad()"),
    ("add_", (torch.ones(3, requires_grad=True)[:], 1), {}, "torch.no_grad()"),
    ("add_", (torch.ones(3, requires_grad=True).unbind()[0], 1), {}, "that was split"),
    ("add_", (inference(), 1), {}, "torch.inference_mode()"),
    ("add_", (expanded(), 1), {}, "input.clone()"),
    ("add_", (BUFFER[1:], BUFFER[:-1]), {}, "share memory in part"),
    ("pow_", (INTS, -1), {}, "floating point dtype"),
    ("fill_", (INTS.to(torch.uint8), 300), {}, "within the range"),
    ("fill_", (FLOATS, 10**400), {}, "within the range"),
    ("sub_", (BOOLS, BOOLS), {}, "logical_xor_"),
    ("neg_", (BOOLS,), {}, "logical_not_"),
    ("relu_", (BOOLS,), {}, "bool tensor"),
    ("add_", (INTS, 1), {"alpha": 1.5}, "integer alpha"),
    ("add_", (FLOATS, 1), {"alpha": True}, "alpha as a number"),
    ("div_", (INTS, 0), {"rounding_mode": "floor"}, "Mask the zeros"),
    ("clamp_", (FLOATS,), {}, "min, max or both"),
    ("sign_", (FLOATS.to(torch.complex64),), {}, "documentation"),
    ("gcd_", (FLOATS, FLOATS), {}, "documentation"),
    ("clamp_", (FLOATS, 0, FLOATS), {}, "clamp_(input, min=None, max=None)"),
    ("add_", (FLOATS, "1"), {}, "add_(input, other, *, alpha=1)"),
    ("add_", (FLOATS, 1, 2, 3), {}, "argument 4: 3"),
    ("add_", (FLOATS,), {}, "add_(input, other, *, alpha=1)"),
    ("add_", (FLOATS, 1), {"beta": 2}, "beta: 2"),
    ("exp_", (FLOATS, 1), {}, "argument 2: 1"),
    ("exp_", (3,), {}, "input must be a torch.Tensor, not int"),
    ("exp_", (), {}, "input is missing"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "hint"), ERRORS)
def test_error_is_torchs_and_says_what_would_do(name, args, kwargs, hint):
    before = args[0].detach().clone() if args and isinstance(args[0], torch.Tensor) else None
    with pytest.raises(Exception) as ours:
        FALLBACK[name](*args, **kwargs)
    unchanged = before is None or torch.equal(args[0].detach(), before)
    with pytest.raises(Exception) as torchs:
        getattr(torch.Tensor, name)(*args, **kwargs)
    assert type(ours.value) is type(torchs.value)
    assert str(torchs.value).startswith(str(ours.value.__cause__))
    message = str(ours.value)
    assert message.startswith(f"{name}: ") and hint in message and "\n" not in message
    assert unchanged
    if before is not None:
        assert f"input: {str(before.dtype).removeprefix('torch.')} tensor of shape" in message


def test_public_function_explains_what_torch_raises():
    with pytest.raises(
        NotImplementedError, match=r"^gcd_: .*Got input: float32 tensor of shape \(3,\), other"
    ):
        ie.gcd_(FLOATS, FLOATS)


def test_explaining_leaves_alone_what_it_does_not_know():
    class Mine(RuntimeError):
        pass

    for error in (Mine("x"), KeyError("x"), KeyboardInterrupt()):
        assert _errors.explain(error, "add_", (), {}) is error
    once = _errors.explain(RuntimeError("x"), "add_", (FLOATS, 1), {})
    assert _errors.explain(once, "mul_", (FLOATS, 1), {}) is once


def test_explaining_never_fails():
    class Hostile(torch.Tensor):
        @property
        def shape(self):
            raise RuntimeError("no shape")

    hostile = torch.ones(2).as_subclass(Hostile)
    for value in (hostile, 10**100000, "x" * 1000, object(), torch.ones(2, device="meta")):
        explained = _errors.explain(RuntimeError("x"), "add_", (value, value), {"alpha": value, "n": value})
        assert type(explained) is RuntimeError and len(str(explained)) < 500
    assert _errors.explain(error := RuntimeError("x"), "no such operation", (), {}) is error


@pytest.mark.parametrize("name", ["div_", "divide_", "floor_divide_", "fmod_", "remainder_"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_division_by_zero_writes_nothing(name, dtype):
    kwargs = {"rounding_mode": "trunc"} if name.startswith("div") else {}
    divisor = torch.ones(1000, dtype=dtype)
    divisor[777] = 0
    for function in (FALLBACK[name], getattr(ie, name)):
        x = torch.full((1000,), 7, dtype=dtype)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            function(x, divisor, **kwargs)
        assert (x == 7).all()
        # Nothing to divide is no error, in torch neither.
        function(x[:0], divisor[777:778], **kwargs)


@pytest.mark.parametrize("name", ["sub_", "atan2_"])
def test_operand_in_the_memory_of_input_is_read_before_it_is_written(name):
    function, method = FALLBACK[name], torch_method(OPS[name])
    cases = {
        "column": lambda x: (x, x[:, :1]),
        "element of a strided tensor": lambda x: (x[:, :3], x[0, 0]),
        "row of a strided tensor": lambda x: (x[:, :3], x[1, :3]),
        "shifted columns": lambda x: (x[:, 1:3], x[:, :2]),
        "transposed part": lambda x: (x[:3, :3], x[:3, :3].t()),
        "disjoint columns": lambda x: (x[:, ::2], x[:, 1::2]),
        "itself": lambda x: (x, x),
        "a view of itself": lambda x: (x[:, :2], x[:, :2]),
    }
    for case, views in cases.items():
        x = torch.arange(1.0, 17.0).view(4, 4)
        target, operand = views(x)
        expected = method(target.clone(), operand.clone())
        try:
            method(*views(x.clone()))
        except RuntimeError as error:  # torch sees this one, and so it stays
            with pytest.raises(RuntimeError, match=str(error)[:40]):
                function(target, operand)
            continue
        assert torch.equal(function(target, operand), expected), case


def test_modes_see_the_torch_method_alone():
    seen = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    ones = torch.ones(3)
    for function in (FALLBACK["add_"], ie.add_):
        for mode, expected in ((Functions(), torch.Tensor.add_), (Dispatches(), torch.ops.aten.add_.Tensor)):
            with mode:
                function(ones, FLOATS)
            assert seen == [expected]
            seen.clear()


def test_autograd_and_vmap_go_through():
    for function in (FALLBACK["mul_"], ie.mul_):
        x = torch.ones(3, requires_grad=True)
        function(x * 1, torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        assert x.grad.tolist() == [1, 2, 3]
        over_rows = torch.func.vmap(lambda a, b, f=function: f(a.clone(), b))
        mapped = over_rows(torch.ones(2, 3), torch.ones(2, 3) * 2)
        assert mapped.tolist() == [[2, 2, 2], [2, 2, 2]]
    over_ints = torch.func.vmap(lambda a, b: FALLBACK["div_"](a.clone(), b, rounding_mode="floor"))
    divided = over_ints(INTS, INTS)
    assert divided.tolist() == [1, 1, 1]


def test_paths_can_be_chosen_and_seen():
    x = torch.ones(3)
    before = testing.available_capabilities()
    for name in before:
        with testing.use_capability(name):
            ie.add_(x, 1)
            assert testing.last_path().startswith(f"{name}:")
    with testing.native_disabled():
        ie.add_(x, 1)
        with testing.native_disabled():
            pass
        ie.add_(x, 1)
        assert testing.last_path() == "torch"
    assert x.tolist() == [len(before) + 3.0] * 3
    ie.add_(x, 1)
    assert testing.last_path().split(":")[0] == (ie.info().capability or "torch")
