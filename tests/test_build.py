"""The build: flags, exported symbols, the choice of instruction set, and each way to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import inplace_ext as ie
from inplace_ext import _build, _native, testing

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
# An editable install answers for every submodule of its package, also for one that another copy lacks.
ALONE = "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in str(f)]\n"
PROBE = (
    ALONE
    + """
import inplace_ext as ie, torch
x = torch.tensor([-1.0, 0.5, 2.0])
assert ie.clamp_(x, 0, 1) is x and x.tolist() == [0.0, 0.5, 1.0]
print(ie.__file__, ie.info().capability, ie.info().reason, sep="|")
"""
)

checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
in_place = pytest.mark.skipif(_build.ROOT != ROOT, reason="needs the package of the source tree")
native = pytest.mark.skipif(_native.module is None, reason="needs the compiled module")
built_here = pytest.mark.skipif(_build.missing_toolchain() is not None, reason="needs a compiler")


def run(*command: object, cwd: Path | str = "/", **environment: str) -> str:
    """The output of a command, by default outside of the source tree; its errors become the test's."""
    result = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def probe(path: Path, **environment: str) -> list[str]:
    """File, capability and reason of the package installed in the folder ``path``."""
    return run(sys.executable, "-W", "ignore", "-c", PROBE, PYTHONPATH=str(path), **environment).split("|")


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of the sources, so that a build leaves nothing behind in the tree that is tested."""
    tree = tmp_path / "source"
    records = (_build.REASON_FILE, _build.CUDA_REASON_FILE)
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", *records)
    shutil.copytree(ROOT, tree, ignore=unwanted)
    return tree


@checkout
def test_setup_py_is_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 60


@checkout
def test_build_module_needs_no_package() -> None:
    code = f"""
import runpy, sys
module = runpy.run_path({str(ROOT / "inplace_ext" / "_build.py")!r})
assert module["sources"]("cpu") and module["sources"]("bindings") and module["headers"]()
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "inplace_ext")))
"""
    assert run(sys.executable, "-c", code) == "[]"


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", ["avx512", "avx2", "baseline"]), ("aarch64", ["baseline"]), ("riscv64", ["baseline"])],
)
def test_capabilities_of_each_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: list[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert list(_build.capabilities()) == expected


def test_flags_of_each_capability() -> None:
    flags = _build.CAPABILITIES["x86_64"]
    # The baseline runs everywhere, and a wider set holds the narrower one.
    assert flags["baseline"] == []
    assert set(flags["avx2"]) < set(flags["avx512"])
    assert {"-mavx2", "-mfma", "-mf16c"} <= set(flags["avx2"])
    for every in (_build.KERNEL_FLAGS, _build.BINDING_FLAGS, *flags.values()):
        assert not {"-march=native", "-ffast-math", "-Ofast"} & set(every)
    assert {"-ffp-contract=off", "-fwrapv", "-fvisibility=hidden"} <= set(_build.KERNEL_FLAGS)


@checkout
@in_place
@native
@built_here
@pytest.mark.nosanitize  # a program without the sanitizers' runtimes
def test_kernels_leave_no_upper_halves_of_registers_in_use(tmp_path: Path) -> None:
    """Or Python and torch, which are compiled for SSE, go on at a fraction of their speed."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if not re.search(r"\bxgetbv1\b", flags) or not re.search(r"\bavx\b", flags):
        pytest.skip("needs a processor that says which registers are in use")
    program = tmp_path / "upper_halves"
    source, include = ROOT / "tests" / "cpp" / "upper_halves.cpp", f"-I{ROOT / 'csrc' / 'include'}"
    run(
        os.environ.get("CXX", "c++"), "-std=c++20", "-Wall", "-Wextra", include, source, "-o", program, "-ldl"
    )
    for capability in testing.available_capabilities():
        found = run(program, _native.library(capability))
        assert re.fullmatch(r"0 of \d{5} calls", found), (capability, found)


@checkout
@in_place
def test_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INPLACE_EXT_SANITIZE", raising=False)
    by_name = {extension.name: extension for extension in _build.extensions()}
    cuda = [] if _build.no_cuda() else ["inplace_ext._cuda"]
    kernels = [f"inplace_ext._cpu_{name}" for name in _build.capabilities()]
    assert set(by_name) == {"inplace_ext._C", *kernels, *cuda}
    for name, flags in _build.capabilities().items():
        kernel = by_name[f"inplace_ext._cpu_{name}"]
        assert set(flags) <= set(kernel.extra_compile_args)
        # Kernels know no torch.
        assert not any("torch" in part for part in [*kernel.include_dirs, *kernel.libraries])
    assert "-fsanitize=address,undefined" not in str(by_name["inplace_ext._C"].extra_compile_args)
    monkeypatch.setenv("INPLACE_EXT_SANITIZE", "1")
    for extension in _build.extensions():
        assert "-fsanitize=address,undefined" in str(extension.extra_compile_args)
        assert "-fsanitize=address,undefined" in extension.extra_link_args


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("/nonexistent/c++ -O2", "no C++ compiler: /nonexistent/c++ is not on PATH"),
        ("false", "false cannot build"),
    ],
)
def test_missing_toolchain_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, compiler: str, expected: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("INPLACE_EXT_BUILD", "")
    assert expected in str(_build.pure_python())
    monkeypatch.setenv("INPLACE_EXT_BUILD", "1")
    with pytest.raises(RuntimeError, match="INPLACE_EXT_BUILD=1, but"):
        _build.pure_python()


@native
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.nosanitize  # the sanitizers export symbols of their own
@pytest.mark.parametrize("name", list(_build.capabilities()))
def test_kernel_library_exports_one_symbol(name: str) -> None:
    symbols = run("nm", "-D", "--defined-only", _native.library(name)).splitlines()
    assert [line.split()[-1] for line in symbols] == [_build.KERNEL_SYMBOL]


@native
@pytest.mark.nosanitize
@pytest.mark.parametrize("name", list(_build.capabilities()))
def test_kernel_library_needs_no_torch(name: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    needed = run("readelf", "-d", _native.library(name))
    assert not any(library in needed for library in ("libtorch", "libc10", "libpython"))


@native
@pytest.mark.parametrize(
    ("asked", "expected"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")]
)
def test_capability_is_the_one_torch_reports(asked: str, expected: str) -> None:
    if expected not in testing.available_capabilities():
        pytest.skip(f"{expected} does not run here")
    package = Path(str(ie.__file__)).parent.parent
    assert probe(package, ATEN_CPU_CAPABILITY=asked)[1] == expected


@checkout
@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"INPLACE_EXT_BUILD": "0"}, "INPLACE_EXT_BUILD=0"),
        ({"INPLACE_EXT_BUILD": "", "CXX": "/nonexistent/c++"}, "no C++ compiler"),
    ],
    ids=["asked", "no-compiler"],
)
def test_pure_python_install(
    tmp_path: Path, source_tree: Path, environment: dict[str, str], reason: str
) -> None:
    target = tmp_path / "target"
    run(*PIP, "install", "--no-deps", "--no-build-isolation", "--target", target, source_tree, **environment)
    assert not list(target.rglob("*.so"))
    (metadata,) = target.glob("*.dist-info/WHEEL")
    assert "Tag: py3-none-any" in metadata.read_text()
    file, capability, recorded = probe(target)
    assert file.startswith(str(target)) and capability == "None" and reason in recorded
    # One warning says so, and why.
    warned = subprocess.run(
        [sys.executable, "-W", "always", "-c", ALONE + "import inplace_ext"],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stderr
    assert warned.count("RuntimeWarning") == 1 and reason in warned


@checkout
@native
@built_here
@pytest.mark.slow
@pytest.mark.nosanitize
def test_wheel_installs_elsewhere(tmp_path: Path) -> None:
    # In the tree itself, whose objects are compiled already: only links.
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT, INPLACE_EXT_BUILD="1")
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name.partition(".")[0] for name in archive.namelist() if name.endswith(".so")}
    cuda = set() if _build.no_cuda() else {"_cuda"}
    assert names == {"_C", *(f"_cpu_{name}" for name in _build.capabilities())} | cuda
    target = tmp_path / "target"
    run(*PIP, "install", "--no-deps", "--target", target, wheel)
    file, capability, _ = probe(target)
    assert file.startswith(str(target)) and capability == ie.info().capability
    # It carries the sources, so that it compiles operations of one's own.
    code = """
import inplace_ext.testing as testing, inplace_ext as ie, torch
f_ = ie.jit.elementwise("carried_", "x * 2 + y", tensors=["y"])
assert f_(torch.ones(3), 1).tolist() == [3.0] * 3 and testing.last_path() != "torch"
"""
    where = {"PYTHONPATH": str(target), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    run(sys.executable, "-c", ALONE + code, **where)


@checkout
@pytest.mark.slow
def test_sdist_holds_every_source(tmp_path: Path, source_tree: Path) -> None:
    code = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=source_tree, INPLACE_EXT_BUILD="0")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("csrc", "inplace_ext", "tests", "tools", "benchmarks")
    paths = [path for folder in folders for path in (source_tree / folder).rglob("*") if path.is_file()]
    wanted = {path.relative_to(source_tree).as_posix() for path in paths}
    wanted |= {"setup.py", "pyproject.toml", "requirements-dev.txt", "Makefile", "README.md", "LICENSE"}
    assert any(name.endswith("exports.map") for name in wanted)
    assert wanted - held == set()
    assert not any(name.endswith((".so", ".o", ".pyc", _build.REASON_FILE)) for name in held)


@checkout
@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a git checkout"
)
def test_build_products_are_ignored() -> None:
    products = [
        "build/x.o",
        "dist/x.whl",
        "inplace_ext/_C.cpython-311-x86_64-linux-gnu.so",
        f"inplace_ext/{_build.REASON_FILE}",
        f"inplace_ext/{_build.CUDA_REASON_FILE}",
        "inplace_ext_demo.png",
        ".venv/bin/python",
        ".venv-cuda/bin/python",
    ]
    assert run("git", "-C", ROOT, "check-ignore", *products).splitlines() == products


# ---- CUDA: the choice, without a compiler at work ----------------------------------------------------------


def nvcc(folder: Path, release: str) -> Path:
    """A toolkit whose nvcc says no more than its version."""
    compiler = folder / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    compiler.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("torch_cuda", "release", "expected"),
    [
        ("13.0", "13.0", None),
        ("13.0", "13.2", None),
        ("13.0", "12.8", "nvcc in .* is of CUDA 12.8: the major versions must be the same"),
        ("13.0", None, "torch is built with CUDA 13.0, but no nvcc is on PATH or in CUDA_HOME"),
        (None, "13.0", "is a build without CUDA"),
    ],
)
@pytest.mark.parametrize("wanted", ["", "0", "1"])
def test_choice_of_cuda(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torch_cuda: str | None,
    release: str | None,
    expected: str | None,
    wanted: str,
) -> None:
    monkeypatch.setenv("INPLACE_EXT_CUDA", wanted)
    monkeypatch.delenv("INPLACE_EXT_SANITIZE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path, release) if release else tmp_path / "nowhere"))
    if wanted == "0":
        assert "INPLACE_EXT_CUDA=0" in str(_build.no_cuda())
    elif expected is None:
        assert _build.no_cuda() is None
    elif wanted == "1":
        with pytest.raises(RuntimeError, match=f"INPLACE_EXT_CUDA=1, but .*{expected}"):
            _build.no_cuda()
    else:
        assert re.search(expected, str(_build.no_cuda()))


def test_toolkit_is_found_behind_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = nvcc(tmp_path / "toolkit", "13.1")
    front = tmp_path / "front" / "nvcc"
    front.parent.mkdir()
    front.write_text(
        f"""#!/bin/sh
case "$1" in
  --dryrun) echo '#$ _HERE_={home}/bin' >&2 ;;
  *) exec {home}/bin/nvcc "$@" ;;
esac
"""
    )
    front.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{front.parent}:{os.environ['PATH']}")
    assert _build.find_toolkit() == _build.Toolkit(home, (13, 1))


def test_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX")
    assert _build.cuda_architectures() == "8.0;9.0+PTX"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _build.cuda_architectures() == _build.CUDA_ARCHITECTURES
    assert _build.CUDA_ARCHITECTURES.endswith("+PTX")
    # What is compiled here is for the devices that are here, and newer ones.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6), (9, 0)][index])
    assert _build.cuda_architectures() == "8.6;9.0+PTX"


@checkout
@in_place
def test_cuda_extension(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INPLACE_EXT_CUDA", "1")
    monkeypatch.delenv("INPLACE_EXT_SANITIZE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path, "13.0")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    (extension,) = (e for e in _build.extensions() if e.name == "inplace_ext._cuda")
    assert all(source.endswith(".cu") for source in extension.sources)
    flags = extension.extra_compile_args["nvcc"]
    assert '-DINPLACE_EXT_ARCHITECTURES="9.0"' in flags and "-fmad=false" in flags
    assert not any("fast" in flag for flag in flags)
    # The kernels know no torch.
    assert not any("torch" in part for part in [*extension.include_dirs, *extension.libraries])


def test_built_against_a_supported_torch() -> None:
    assert tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
