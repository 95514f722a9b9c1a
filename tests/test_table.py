"""The op table: complete, documented, in agreement with torch, with C++ and with what is generated."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from table_samples import DTYPES, sample

import inplace_ext as ie
from inplace_ext import _native
from inplace_ext._delegate import torch_method
from inplace_ext._table import ALL_OPS, EXCLUDED, INDEXED, LAYOUT, OPS

ROOT = Path(__file__).resolve().parent.parent
NAMES = list(OPS)


def test_every_inplace_method_of_tensor_is_accounted_for():
    methods = {name for name in dir(torch.Tensor) if name.endswith("_") and not name.startswith("_")}
    excluded = [name for names in EXCLUDED.values() for name in names.split()]
    assert len(excluded) == len(set(excluded))
    table = {**OPS, **LAYOUT, **INDEXED}
    assert not set(table) & set(excluded)
    assert methods == {name for name, op in table.items() if not op.like} | set(excluded)


@pytest.mark.skipif(_native.module is None, reason="no compiled module")
def test_table_agrees_with_cpp():
    native = [op.name for op in OPS.values() if op.native and not op.alias_of]
    assert sorted(native) == sorted(_native.module.native_names())


def test_package_exports_the_table():
    assert set(ALL_OPS) < set(ie.__all__)
    assert len(ie.__all__) == len(set(ie.__all__))
    for name in ie.__all__:
        assert hasattr(ie, name)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.like])
def test_signature_is_that_of_torchs_function(name):
    if name == "where_":
        pytest.skip("torch.where has the mask first")
    function = getattr(torch.nn.functional, name[:-1], None) or getattr(torch, name[:-1])
    doc = function.__doc__.strip().partition("\n")[0].replace("=False", "=0")
    try:
        theirs = [p for p in inspect.signature(function).parameters.values() if p.name != "inplace"]
        theirs = [(p.name, p.default) for p in theirs]
    except ValueError:  # built in: its documentation begins with the signature
        names = re.search(r"\((.*?)(, \*, out=None)?\)", doc).group(1).split(", ")
        pairs = [n.replace(" ", "").partition("=") for n in names]
        theirs = [
            (n, float(d) if e and "'" not in d else d[1:-1] if e else inspect.Parameter.empty)
            for n, e, d in pairs
            if n != "inplace"
        ]
    ours = [(p.name, p.default) for p in inspect.signature(getattr(ie, name)).parameters.values()]
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name, op in {**OPS, **LAYOUT}.items() if not op.like])
def test_signature_is_torchs(name):
    # copy_ has overloads for TorchScript that no Python call reaches.
    schemas = [
        schema
        for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}")
        if str(schema.arguments[0].type) == "Tensor" and not (name == "copy_" and schema.overload_name)
    ]
    parameters = inspect.signature(getattr(ie, name)).parameters
    assert next(iter(parameters)) == "input"

    order = []
    for schema in schemas:
        order += [argument.name for argument in schema.arguments[1:] if argument.name not in order]
    assert list(parameters)[1:] == order
    for parameter in list(parameters.values())[1:]:
        found = [a for schema in schemas for a in schema.arguments if a.name == parameter.name]
        assert (parameter.kind is parameter.KEYWORD_ONLY) == any(a.kwarg_only for a in found)
        if parameter.default is parameter.empty:
            assert not all(a.has_default_value() for a in found)
        else:
            # Where only some overloads have the parameter, its default is that of the others' behaviour.
            defaults = [a.default_value for a in found if a.has_default_value()]
            assert parameter.default in defaults or len(found) < len(schemas)


@pytest.mark.parametrize("name", NAMES)
def test_operation_takes_the_documented_dtypes_and_agrees_with_torch(name):
    op = OPS[name]
    function, method = getattr(ie, name), torch_method(op)
    for dtype in DTYPES:
        x, arguments = sample(op, dtype)
        # torch's methods do not take every parameter by the name that torch documents.
        keywords = {key: arguments[key] for key in arguments if key not in op.positional_names}
        positional = [value for key, value in arguments.items() if key not in keywords]
        documented = str(dtype).removeprefix("torch.") in op.dtype_names
        if documented:
            result = x.clone()
            assert function(input=result, **arguments) is result
            torch.testing.assert_close(result, method(x.clone(), *positional, **keywords), equal_nan=True)
        else:
            with pytest.raises((RuntimeError, TypeError)):
                method(x.clone(), *positional, **keywords)
            with pytest.raises((RuntimeError, TypeError)):
                function(x.clone(), **arguments)


@pytest.mark.parametrize("name", list(ALL_OPS))
def test_function_looks_like_one_of_the_package(name):
    function = getattr(ie, name)
    assert (function.__module__, function.__name__) == ("inplace_ext", name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert str(inspect.signature(function)) == ALL_OPS[name].signature


@pytest.mark.parametrize("name", list(ALL_OPS))
def test_docstring_has_its_sections_and_its_example_runs(name):
    doc = getattr(ie, name).__doc__
    assert len(doc.splitlines()[0]) <= 100
    for section in (
        "Formula: ",
        "Shapes: ",
        "Dtypes: ",
        "Maximum error: ",
        "Returns: ",
        "Errors",
        "Source: ",
    ):
        assert f"\n{section}" in doc
    like = ALL_OPS[name].like
    assert (f"Same as :func:`{like}`" if like else f"Same as :meth:`torch.Tensor.{name}`") in doc


def test_generated_files_are_current():
    command = [sys.executable, ROOT / "tools" / "generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_types():
    """A strict type checker accepts the good uses of the sample and rejects the bad ones."""
    pytest.importorskip("mypy")
    # Not the project's configuration: a user has none.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    result = subprocess.run([*command, "tests/typing_sample.py"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_info():
    info = ie.info()
    assert info.version == ie.__version__
    assert info.native == (_native.module is not None)
    printed = subprocess.run(
        [sys.executable, "-m", "inplace_ext"], capture_output=True, text=True, check=True
    )
    assert ie.__version__ in printed.stdout and torch.__version__ in printed.stdout
    lines = dict(line.split(None, 1) for line in printed.stdout.splitlines() if " " in line.strip())
    assert {"backends.cpu", "backends.cuda", "cuda_reason"} <= set(lines)
    if info.native:
        assert lines["backends.cpu"] == f"own kernels ({info.capability})"
        assert "-ffp-contract=off" in lines[f"flags.cpu.{info.capability}"]
        assert lines["build.operations"].split() == list(info.build["operations"])
