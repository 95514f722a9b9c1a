"""The emulated device (tests/emulate): builds it on demand, loads it beside the CPU's kernels, and asks it
what its kernels did. It stands for no GPU: it shows what the kernels compute and touch, not how fast."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import inplace_ext as ie
from inplace_ext import _native

ROOT = Path(__file__).resolve().parents[1]
EMULATE = ROOT / "tests" / "emulate"
SECTOR = 32
#: "address" or "thread": the sanitizer that the device is built with, whose runtime is loaded already.
SANITIZER = os.environ.get("INPLACE_EXT_EMULATE_SANITIZE", "")
FLAGS = {
    "": ["-O1", "-g1"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
    # Threads of the device are threads of the system, which the sanitizer watches.
    "thread": ["-O1", "-g", "-fsanitize=thread", "-DINPLACE_EXT_EMULATE_THREADS"],
}


def _cuda_headers() -> Path | None:
    """Where cuda_fp16.h lies: in a toolkit, or in the wheels that torch's CUDA build depends on."""
    roots = [Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        roots.append(Path(nvcc).resolve().parents[1])
    roots += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    roots += sorted((Path(sysconfig.get_path("purelib")) / "nvidia").glob("cu*"), reverse=True)
    for root in roots:
        if (root / "include" / "cuda_fp16.h").exists() and (root / "include" / "vector_types.h").exists():
            return root / "include"
    return None


COMPILER = shlex.split(os.environ.get("CXX", "c++"))
HEADERS = _cuda_headers()


def missing() -> str | None:
    """Why the device cannot be built here, if it cannot."""
    if shutil.which(COMPILER[0]) is None:
        return f"no compiler: {COMPILER[0]}"
    return None if HEADERS is not None else "no CUDA headers (cuda_fp16.h)"


def build(name: str, *sources: str, text: str = "", device: Path | None = None) -> Path:
    """A shared library of these sources and the emulation, in build/emulate, by the content of all.

    With ``text`` this is the source; with ``device`` the emulation is that of another library.
    """
    assert HEADERS is not None
    version = subprocess.run([*COMPILER, "--version"], check=True, capture_output=True, text=True).stdout
    flags = ["-std=c++20", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-DINPLACE_EXT_EMULATE"]
    flags += FLAGS[SANITIZER]
    if os.uname().machine == "x86_64":
        flags += ["-mfma", "-mf16c"]
    flags += [f"-I{ROOT / folder}" for folder in ("csrc/include", "csrc/cuda", "tests/emulate")]
    flags += ["-isystem", str(HEADERS)]
    inputs = [
        f for folder in ("csrc/include", "csrc/cuda", "tests/emulate") for f in (ROOT / folder).rglob("*")
    ]
    digest = hashlib.sha256(repr((version, flags, sources, text, str(HEADERS))).encode())
    for file in sorted(f for f in inputs if f.suffix in (".h", ".cuh", ".cpp", ".cu")):
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "emulate" / digest.hexdigest()[:16]
    target = folder / f"{name}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> str:
        made = folder / f"{name}-{Path(source).stem}.o"
        path = ROOT / source if "/" in source else EMULATE / source
        _run([*COMPILER, *flags, "-x", "c++", "-c", str(path), "-o", str(made)])
        return str(made)

    if text:
        (folder / f"{name}.cpp").write_text(text)
        sources = (str(folder / f"{name}.cpp"),)
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, [*sources, *([] if device else ["emulate.cpp"])]))
    # Not half a library for another process.
    made = target.with_suffix(f".{os.getpid()}.so")
    # Kernels of the same names are others there.
    linked = [str(device), "-Wl,-Bsymbolic"] if device else []
    _run([*COMPILER, *FLAGS[SANITIZER], "-shared", *objects, *linked, "-o", str(made), "-ldl", "-pthread"])
    made.replace(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


@functools.cache
def library_path() -> Path:
    return build(
        "kernels",
        "library.cpp",
        "programs.cpp",
        "csrc/cuda/interpreter_floats.cu",
        "csrc/cuda/interpreter_integers.cu",
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The device with the kernels of csrc/cuda, known to the compiled module as "emulated"."""
    assert _native.module is not None
    path = library_path()
    assert _native.module.load_kernels(str(path)) == "emulated"
    lib = ctypes.CDLL(str(path))
    lib.inplace_ext_emulate_launches.restype = ctypes.c_char_p
    return lib


def defined(function: Callable[..., torch.Tensor]) -> ie.jit._Defined:
    """What stands behind an operation of one's own."""
    (found,) = (d for d in ie.jit._defined.values() if function in (d.function, d.twin))
    return found


@functools.cache
def operation_path(function: Callable[..., torch.Tensor]) -> Path:
    """An operation of one's own for the device, of the source that nvcc would get."""
    definition = defined(function).definition
    text = definition.cuda_source + '#include "own.h"\n'
    return build(f"own-{definition.name}", text=text, device=library_path())


def load_operation(function: Callable[..., torch.Tensor]) -> None:
    """Has the device run an operation of one's own."""
    library()
    assert _native.module is not None
    code, path = defined(function).code, operation_path(function)
    assert _native.module.load_operation(code, str(path)) == "emulated"


@dataclass
class Launch:
    """What a launch did; sectors are 32 bytes, once for each instruction of a warp that touches them."""

    kernel: str
    blocks: int
    threads: int
    bytes_read: int
    bytes_written: int
    sectors_read: int
    sectors_written: int
    instructions: int
    widest_read: int
    widest_write: int

    @property
    def sectors(self) -> int:
        return self.sectors_read + self.sectors_written


def launches() -> list[Launch]:
    """The launches since the last call."""
    text = library().inplace_ext_emulate_launches().decode()
    return [_launch(line) for line in text.splitlines()]


def kernels_of(*headers: str) -> set[str]:
    """The names of the kernels of headers of csrc/cuda."""
    text = "".join((ROOT / "csrc" / "cuda" / header).read_text() for header in headers)
    return set(re.findall(r"IE_GLOBAL void\s+IE_LAUNCH_BOUNDS\([^\n]*\)\s+(\w+)\(", text))


def _launch(line: str) -> Launch:
    kernel, *numbers = line.split("\t")
    kernel = kernel.replace("inplace_ext::cuda::", "").replace("inplace_ext::", "").split("::", 1)[-1]
    return Launch(kernel, *map(int, numbers))


@contextmanager
def device(*, processors: int = 2, threads: int = 1024, order: str = "forward") -> Iterator[None]:
    """Calls run on a device of this size, whose threads get their turn in this order."""
    lib = library()
    lib.inplace_ext_emulate_device(processors, threads)
    lib.inplace_ext_emulate_order(["forward", "backward", "shuffled"].index(order))
    module = _native.module
    assert module is not None
    before, count = module.capability(), torch.get_num_threads()
    torch.set_num_threads(1)
    module.use_capability("emulated")
    try:
        yield
    finally:
        module.use_capability(before)
        torch.set_num_threads(count)
        lib.inplace_ext_emulate_order(0)


needs_device = pytest.mark.skipif(
    _native.module is None or missing() is not None, reason=missing() or "no compiled module"
)
#: Counts come with fibers alone: accesses of real threads have no order to be counted in.
counted = pytest.mark.skipif(SANITIZER == "thread", reason="threads are not counted")

#: Kernels that a test has run and noted.
seen: set[str] = set()


def note() -> list[Launch]:
    """The launches since the last call, whose kernels have been seen."""
    made = launches()
    seen.update(launch.kernel.split("<")[0] for launch in made)
    return made
