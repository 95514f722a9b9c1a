"""The documentation: every example in it runs, and the reference has everything that is public."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import inplace_ext as ie
from inplace_ext import _build, _native, testing

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["contract", "fusing", "softmax-and-dropout", "own-operations"]

checkout = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")


def public() -> Iterator[tuple[str, Any]]:
    """Everything that a user may call or import, by its name."""
    for module in (ie, ie.nn, ie.jit, testing):
        yield module.__name__, module
        names = getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]
        for name in names:
            item = getattr(module, name)
            if isinstance(item, ModuleType) or not getattr(item, "__module__", "").startswith("inplace_ext"):
                continue
            yield f"{module.__name__}.{name}", item
            if inspect.isclass(item):
                for method, function in vars(item).items():
                    if method[0] != "_" and inspect.isfunction(function):
                        yield f"{module.__name__}.{name}.{method}", function


PUBLIC = dict(public())
EXAMPLES = {name: item for name, item in PUBLIC.items() if ">>>" in (inspect.getdoc(item) or "")}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        yield


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    assert inspect.getdoc(PUBLIC[name]), name


@pytest.mark.filterwarnings("ignore:.*goes through torch:RuntimeWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_examples(name: str) -> None:
    globs = {"torch": torch, "ie": ie}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(EXAMPLES[name]) or "", globs, name, None, None)
    report: list[str] = []
    assert test.examples
    assert not doctest.DocTestRunner().run(test, out=report.append).failed, "".join(report)


def test_functions_have_examples() -> None:
    functions = {f"inplace_ext.{name}" for name in ie.__all__ if inspect.isroutine(getattr(ie, name))}
    assert functions - set(EXAMPLES) == {"inplace_ext.info"}


@checkout
@pytest.mark.parametrize("page", PAGES)
def test_pages_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    if _native.module is None or _build.missing_toolchain() is not None:
        pytest.skip("they show the compiled module, and compile")
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    # As a file, since fused functions show the lines that are wrong.
    file = f"<{page}>"
    code = "\n".join(blocks)
    import linecache

    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    exec(compile(code, file, "exec"), {"__name__": "page"})
    if page == "own-operations":
        shown = [line[2:] for line in code.splitlines() if line.startswith("# ")]
        assert capsys.readouterr().out.splitlines() == shown


@checkout
def test_docstrings_become_fields() -> None:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None and spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    lines = conf.as_fields((ie.add_.__doc__ or "").splitlines())
    assert ":Formula: ``x = x + alpha * other``, for each element x of ``input``." in lines
    assert ":Errors, each raised before anything is written:" in lines
    assert any(line.startswith("    - ``TypeError``: ") for line in lines)
    assert not any(line.startswith(("Shapes", "Dtypes", "Note", "Source")) for line in lines)
