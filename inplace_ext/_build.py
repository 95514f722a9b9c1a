"""How the compiled parts are built: sources, flags and instruction sets, in one place.

`setup.py` loads this file by its path, since the package cannot be imported before it is built; so it
imports nothing of the package, and torch only where an extension is described.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "inplace_ext"

#: The name of the one symbol that a kernel library exports; csrc/cpu/exports.map hides the rest.
KERNEL_SYMBOL = "inplace_ext_cpu_kernels"

CUDA_SYMBOL = "inplace_ext_cuda_kernels"

#: Where a build without CUDA kernels writes down its reason, for ``info()``.
CUDA_REASON_FILE = "_no_cuda.txt"

#: Where a build without extensions writes down its reason, for the warning at import.
REASON_FILE = "_pure_python.txt"

_CXX_STANDARD = "-std=c++20"
_WARNINGS = ["-Wall", "-Wextra"]

# at::parallel_for is a header template over OpenMP. torch ships its libgomp under the usual SONAME and
# is imported first, so this adds no second runtime.
BINDING_FLAGS = ["-O2", _CXX_STANDARD, "-fopenmp", "-fvisibility=hidden", *_WARNINGS, "-g0"]

# Values do not depend on the instruction set: no contraction, and integers wrap as torch's do.
# -Wno-uninitialized: GCC 12 warns of the undefined operands inside its own AVX-512 intrinsics.
KERNEL_FLAGS = [
    *("-O3", _CXX_STANDARD, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv"),
    *("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", *_WARNINGS),
    *("-Wno-uninitialized", "-Wno-psabi", "-g0"),
]

# As above: no contraction, and IEEE division and square roots, which are the default. Host code as in the
# bindings.
CUDA_FLAGS = [
    *("-O3", _CXX_STANDARD, "-fmad=false", "--expt-relaxed-constexpr", "-Werror", "all-warnings"),
    *("-Xcompiler", "-fvisibility=hidden,-Wall,-Wno-psabi,-fwrapv,-g0"),
]
#: Compute capabilities where neither TORCH_CUDA_ARCH_LIST nor a device says which: from Turing on, what the
#: toolkit of torch compiles for, with PTX at the end for devices to come. Code for 8.0 runs on 8.6 and 8.9.
CUDA_ARCHITECTURES = "7.5;8.0;9.0;10.0;12.0+PTX"
#: The same at run time, where each one costs time: PTX, of which the driver makes code for later ones.
CUDA_ARCHITECTURE = "8.0+PTX"

_AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mprefer-vector-width=512"]

#: Instruction set -> flags, by machine. One library each: object code for several instruction sets in
#: one library could swap inline functions at link time and crash an older processor.
CAPABILITIES: dict[str, dict[str, list[str]]] = {
    "x86_64": {"avx512": _AVX2 + _AVX512, "avx2": _AVX2, "baseline": []},
    "aarch64": {"baseline": []},
}


def runnable(torch_capability: str) -> tuple[str, ...]:
    """Instruction sets that torch's own choice allows, the widest first."""
    names = ("avx512", "avx2", "baseline")
    return {"AVX512": names, "AVX2": names[1:]}.get(torch_capability, names[2:])


# vptr needs type information that torch's libraries hide and that the kernels are compiled without;
# AddressSanitizer sees what null and object-size would. Those and full debug information double the time.
SANITIZE_FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-sanitize=vptr,null,object-size", "-O1", "-g1", "-fno-omit-frame-pointer"),
]

# After the others, of which the last one counts. The kernels check the places that they read and write
# (IE_ASSERT), the standard library its own.
DEBUG_FLAGS = ["-O0", "-g", "-DINPLACE_EXT_DEBUG", "-D_GLIBCXX_ASSERTIONS"]
#: Lines for compute-sanitizer and the debugger; without optimisation kernels would not have the registers.
CUDA_DEBUG_FLAGS = ["-lineinfo", "-Xcompiler", "-g"]


def sanitizing() -> bool:
    """Whether INPLACE_EXT_SANITIZE asks for AddressSanitizer and UBSan."""
    return os.environ.get("INPLACE_EXT_SANITIZE", "0") not in ("", "0")


def capabilities() -> dict[str, list[str]]:
    """The instruction sets the kernels are compiled for on this machine, and their flags."""
    return CAPABILITIES.get(platform.machine(), {"baseline": []})


def csrc() -> Path:
    """The C++ sources: in an installed package its copy of them, else those of the source tree."""
    copy = Path(__file__).with_name("csrc")
    return copy if copy.is_dir() else ROOT / "csrc"


def source_files(folder: str) -> list[Path]:
    """The sources of one folder of csrc/."""
    found = sorted((csrc() / folder).glob("*.cu" if folder == "cuda" else "*.cpp"))
    if not found:
        raise FileNotFoundError(f"no C++ source in {csrc() / folder}: the sources are incomplete")
    return found


def sources(folder: str) -> list[str]:
    """The same relative to the root, as setuptools wants them."""
    return [path.relative_to(ROOT).as_posix() for path in source_files(folder)]


def headers() -> list[str]:
    """Every header, so that a change to one relinks and an sdist carries it."""
    found = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, and its version as (major, minor)."""

    home: Path
    version: tuple[int, int]


def find_toolkit() -> Toolkit | None:
    """The toolkit of CUDA_HOME or CUDA_PATH, or of the nvcc on PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None or not os.access(nvcc, os.X_OK):
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", said)
    if version is None:
        return None
    if not home:  # what is on PATH may be a script or a link
        plan = subprocess.run(
            [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        here = re.search(r"_HERE_=(.+)", plan.stderr)
        home = str(Path(here[1].strip() if here else nvcc).parent)
    return Toolkit(Path(home), (int(version[1]), int(version[2])))


def no_cuda() -> str | None:
    """Why this build has no CUDA kernels, or None where it has them.

    INPLACE_EXT_CUDA=0 asks for none; =1 makes it an error if they cannot be built.
    """
    wanted = os.environ.get("INPLACE_EXT_CUDA", "")
    if wanted == "0":
        return "INPLACE_EXT_CUDA=0 was set when it was installed"
    if sanitizing():
        return "a sanitized build is of the host's code alone"
    reason = missing_cuda()
    if reason and wanted == "1":
        raise RuntimeError(f"INPLACE_EXT_CUDA=1, but {reason}")
    return reason


def missing_cuda() -> str | None:
    """What keeps CUDA kernels from being built for this torch, or None."""
    import torch

    reason = None
    toolkit = find_toolkit()
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a build without CUDA"
    elif toolkit is None:
        reason = f"torch is built with CUDA {torch.version.cuda}, but no nvcc is on PATH or in CUDA_HOME"
    elif toolkit.version[0] != int(torch.version.cuda.partition(".")[0]):
        major, minor = toolkit.version
        reason = (
            f"torch is built with CUDA {torch.version.cuda}, but nvcc in {toolkit.home} is of CUDA "
            f"{major}.{minor}: the major versions must be the same (CUDA_HOME names another toolkit)"
        )
    return reason


def cuda_architectures(otherwise: str = CUDA_ARCHITECTURES) -> str:
    """Compute capabilities to compile for, in the form of TORCH_CUDA_ARCH_LIST: those in it, else those of
    the devices that are here, else others."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked:
        return asked.replace(" ", ";")
    import torch

    if not torch.cuda.is_available():
        return otherwise
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    names = [f"{major}.{minor}" for major, minor in sorted(found)]
    return ";".join(names) + "+PTX"


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's flags for compute capabilities."""
    flags = []
    for name in architectures.split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if found is None:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST must hold compute capabilities, such as 8.0;9.0+PTX, got {name!r}"
            )
        code = found[1] + found[2]
        flags.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if found[3]:
            flags.append(f"-gencode=arch=compute_{code},code=compute_{code}")
    return flags


def cuda_extension() -> Any:
    """The library of the CUDA kernels."""
    from setuptools import Extension

    toolkit = find_toolkit()
    assert toolkit is not None
    architectures = cuda_architectures()
    # torch's BuildExtension reads these: the first for the flags, the others to find nvcc.
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    os.environ["CUDA_HOME"] = str(toolkit.home)
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.CUDA_HOME = str(toolkit.home)
    arguments = cuda_arguments(architectures)
    return Extension(
        f"{PACKAGE}._cuda",
        sources("cuda"),
        include_dirs=arguments.include_dirs,
        extra_compile_args={"cxx": [], "nvcc": arguments.compile},
        extra_link_args=arguments.link,
        library_dirs=[str(toolkit.home / "lib64")],
        libraries=["cudart"],  # that which torch has loaded
        depends=[*headers(), "csrc/cuda/exports.map"],
        language="c++",
    )


class Arguments(NamedTuple):
    """What a library is compiled with, ahead of time and at run time alike."""

    include_dirs: list[str]
    compile: list[str]
    link: list[str]


def kernel_arguments(flags: list[str]) -> Arguments:
    """Of the kernel library of an instruction set, whose flags are given."""
    sanitize = SANITIZE_FLAGS if sanitizing() else []
    exports = f"-Wl,--version-script={csrc() / 'cpu' / 'exports.map'}"
    # A symbol that nothing defines is an error of the link, not of the import.
    return Arguments(
        [str(csrc() / "include"), str(csrc() / "cpu")],
        KERNEL_FLAGS + flags + sanitize,
        [*(sanitize or ["-Wl,-z,defs"]), exports],
    )


def cuda_arguments(architectures: str) -> Arguments:
    """Of the library of the CUDA kernels, but for the flags that name the architectures."""
    exports = f"-Wl,--version-script={csrc() / 'cuda' / 'exports.map'}"
    define = f'-DINPLACE_EXT_ARCHITECTURES="{architectures}"'
    return Arguments(
        [str(csrc() / "include"), str(csrc() / "cuda")],
        [*CUDA_FLAGS, define],
        ["-Wl,-z,defs", exports],
    )


def binding_arguments() -> Arguments:
    """Of the module that knows torch."""
    from torch.utils.cpp_extension import include_paths

    sanitize = SANITIZE_FLAGS if sanitizing() else []
    # As system headers, so that the warnings are those of our code.
    torch_headers = [flag for path in include_paths() for flag in ("-isystem", path)]
    return Arguments(
        [str(csrc() / "include"), str(csrc() / "bindings")],
        BINDING_FLAGS + torch_headers + sanitize,
        ["-fopenmp", *sanitize],
    )


def extensions() -> list[Any]:
    """The kernel libraries, one per instruction set, and the module that knows torch."""
    from setuptools import Extension
    from torch.utils.cpp_extension import CppExtension

    def described(arguments: Arguments) -> dict[str, Any]:
        return {"include_dirs": arguments.include_dirs, "extra_link_args": arguments.link}

    kernels = []
    for name, flags in capabilities().items():
        arguments = kernel_arguments(flags)
        kernels.append(
            Extension(
                f"{PACKAGE}._cpu_{name}",
                sources("cpu"),
                extra_compile_args=arguments.compile,
                depends=[*headers(), "csrc/cpu/exports.map"],
                language="c++",
                **described(arguments),
            )
        )
    arguments = binding_arguments()
    bindings = CppExtension(
        f"{PACKAGE}._C",
        sources("bindings"),
        extra_compile_args={"cxx": arguments.compile},
        depends=headers(),
        **described(arguments),
    )
    return [bindings, *kernels, *([] if no_cuda() else [cuda_extension()])]


_PROBE = """
#include <Python.h>
#include <omp.h>
#include <span>
#if __cplusplus < 202002L
#error "no C++20"
#endif
extern "C" int probe() { return std::span<const int>().empty() + omp_get_max_threads(); }
"""


def missing_toolchain() -> str | None:
    """What keeps the extensions from being built here, or None.

    Only tools count: code that does not compile is an error, and stays one.
    """
    if not sys.platform.startswith("linux"):
        return f"the compiled module is built on Linux only, this is {sys.platform}"
    for module in ("torch", "ninja"):
        if importlib.util.find_spec(module) is None and not (module == "ninja" and shutil.which("ninja")):
            return f"{module} is not installed where the build runs (pip install --no-build-isolation?)"
    # The command that torch.utils.cpp_extension writes into its ninja file.
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        return f"no C++ compiler: {compiler[0]} is not on PATH (CXX names another one)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROBE)
        include = sysconfig.get_path("include")
        command = [*compiler, _CXX_STANDARD, "-fopenmp", "-shared", "-fPIC", f"-I{include}", str(source)]
        result = subprocess.run(
            [*command, "-o", str(source.with_suffix(".so"))], capture_output=True, text=True
        )
    if result.returncode == 0:
        return None
    lines = result.stderr.splitlines()
    said = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
    return f"{' '.join(compiler)} cannot build a C++20 module for Python with OpenMP: {said.strip()}"


def pure_python() -> str | None:
    """Why this build has no compiled module, or None where it has one.

    INPLACE_EXT_BUILD=0 asks for pure Python; =1 makes a missing toolchain an error.
    """
    wanted = os.environ.get("INPLACE_EXT_BUILD", "")
    if wanted == "0":
        return "INPLACE_EXT_BUILD=0 was set when it was installed"
    reason = missing_toolchain()
    if reason and wanted == "1":
        raise RuntimeError(f"INPLACE_EXT_BUILD=1, but {reason}")
    return reason


def recorded_reason() -> str | None:
    """Why the installed package has no compiled module, as its build wrote it down."""
    try:
        return Path(__file__).with_name(REASON_FILE).read_text().strip()
    except OSError:
        return None


def recorded_cuda_reason() -> str | None:
    """Why the installed package has no CUDA kernels, as its build wrote it down."""
    try:
        return Path(__file__).with_name(CUDA_REASON_FILE).read_text().strip()
    except OSError:
        return None


def commands(reason: str | None) -> dict[str, Any]:
    """The setuptools commands: torch's build_ext with ninja, and a build_py that records `reason`."""
    from setuptools.command.build_py import build_py

    without_cuda = reason or no_cuda()

    class BuildPy(build_py):  # type: ignore[misc]
        def run(self) -> None:
            super().run()
            # An editable install imports from the source tree. The record, since pip hides what a
            # build prints; modules of an earlier build would make it untrue.
            package = Path(ROOT if self.editable_mode else self.build_lib, PACKAGE)
            stale = [*package.glob("_C.*.so"), *package.glob("_cpu_*.so")] if reason else []
            stale += package.glob("_cuda.*.so") if without_cuda else []
            for path in [package / REASON_FILE, package / CUDA_REASON_FILE, *stale]:
                path.unlink(missing_ok=True)
            if reason:
                (package / REASON_FILE).write_text(reason + "\n")
            if without_cuda:
                (package / CUDA_REASON_FILE).write_text(without_cuda + "\n")
            if not self.editable_mode:  # for jit.py, which compiles at run time
                shutil.rmtree(package / "csrc", ignore_errors=True)
                shutil.copytree(ROOT / "csrc", package / "csrc")

    if reason:
        return {"build_py": BuildPy}

    import torch
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):  # type: ignore[misc]
        parallel: int | None

        def finalize_options(self) -> None:
            super().finalize_options()
            if not self.use_ninja:
                raise RuntimeError("ninja does not run (`ninja --version`); header dependencies need it")
            if self.editable_mode:
                # setuptools gives an editable build a new temporary folder each time: keep the objects.
                tag = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_temp = str(ROOT / "build" / tag)
            # Two extensions at a time, with half of ninja's jobs each: neither the last file of one nor
            # a single large file leaves the other cores idle.
            jobs = int(os.environ.get("MAX_JOBS") or (os.cpu_count() or 1) + 2)
            if self.parallel is None and jobs > 1:
                self.parallel = 2
                os.environ["MAX_JOBS"] = str(jobs // 2)

        def build_extension(self, ext: Any) -> None:
            # BuildExtension names an object by its source alone: a folder for each extension keeps the
            # instruction sets apart. In a copy, since two are built at a time.
            command = copy.copy(self)
            folder = ext.name.rpartition(".")[2]
            if folder == "_C":  # torch's headers are outside of ninja's dependencies
                folder += f"-torch-{torch.__version__}"
            command.build_temp = str(Path(self.build_temp, folder))
            start = time.monotonic()
            super(BuildExt, command).build_extension(ext)
            if folder == "_cuda":
                done = f"for {os.environ['TORCH_CUDA_ARCH_LIST']} in {time.monotonic() - start:.0f} s"
                print(f"inplace_ext: built the CUDA kernels {done}", file=sys.stderr)

    return {"build_py": BuildPy, "build_ext": BuildExt}
