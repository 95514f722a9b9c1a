"""Compiling at run time: where libraries are kept, and how they get there.

The folder is torch's for extensions (``TORCH_EXTENSIONS_DIR``, else below the user's cache). What is compiled
into a folder is compiled under its lock, which the system releases when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from inplace_ext import _build


def cache() -> Path:
    """The folder for everything that is compiled here, by torch's convention."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given) / _build.PACKAGE
    import torch._appdirs as appdirs

    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    device = "cpu" if torch.version.cuda is None else f"cu{torch.version.cuda.replace('.', '')}"
    return Path(appdirs.user_cache_dir(appname="torch_extensions"), f"{python}_{device}", _build.PACKAGE)


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def compiler() -> str:
    """What tells one compiler from another: the command, the file behind it, and its date."""
    command = os.environ.get("CXX") or "c++"
    found = shutil.which(shlex.split(command)[0])
    stamp = os.stat(found) if found else None
    return f"{command}|{found}|{stamp and (stamp.st_size, stamp.st_mtime_ns)}"


def environment() -> tuple[str, ...]:
    """Beside sources and flags, what the result depends on."""
    return (torch.__version__, sys.version, compiler())


@functools.lru_cache(maxsize=8)
def _digest_of_headers(stamp: tuple[tuple[str, int, int], ...]) -> str:
    return digest(*(Path(path).read_text() for path, _, _ in stamp))


def headers_digest(folder: str) -> str:
    """Of the contents of all headers that a kernel in a folder of csrc may include."""
    csrc = _build.csrc()
    found = [*(csrc / "include").rglob("*.h"), *(csrc / folder).glob("*.h"), *(csrc / folder).glob("*.cuh")]
    paths = sorted(found)
    stats = [(str(path), os.stat(path)) for path in paths]
    return _digest_of_headers(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made; waits while another process or thread has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class NoToolchain(RuntimeError):
    """There is no compiler, or something else that compiling needs."""


def require_toolchain() -> None:
    if reason := _build.missing_toolchain():
        raise NoToolchain(reason)


def compile_library(
    name: str,
    sources: Sequence[Path],
    folder: Path,
    arguments: _build.Arguments,
    *,
    debug: bool = False,
    verbose: bool = False,
) -> Path:
    """Brings the library ``name`` in ``folder`` up to date and returns it; the caller holds the lock.

    Ninja compiles what has changed, headers included. What the compiler says comes through whole, as a
    RuntimeError where it fails.
    """
    from torch.utils import cpp_extension

    # torch remembers sources, and knows nothing of headers: within one process it would not ask ninja twice.
    cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(name, None)
    # Its own lock is a file that a killed process leaves behind; ours is held.
    (folder / "lock").unlink(missing_ok=True)
    begin = time.perf_counter()
    cpp_extension.load(
        name=name,
        sources=[str(source) for source in sources],
        extra_include_paths=[str(path) for path in arguments.include_dirs],
        extra_cflags=[*arguments.compile, *(_build.DEBUG_FLAGS if debug else [])],
        # Torch's libraries follow; kernels take nothing from them.
        extra_ldflags=["-Wl,--as-needed", *arguments.link],
        build_directory=str(folder),
        verbose=verbose,
        with_cuda=False,
        is_python_module=False,
    )
    if verbose:
        print(f"{name}: up to date in {time.perf_counter() - begin:.1f} s, in {folder}", file=sys.stderr)
    return folder / f"{name}.so"


def compile_cuda_library(
    name: str,
    sources: Sequence[Path],
    folder: Path,
    arguments: _build.Arguments,
    toolkit: _build.Toolkit,
    *,
    verbose: bool = False,
) -> Path:
    """The same by nvcc. torch's own way would link its libraries, which a kernel library does without."""
    begin = time.perf_counter()
    host = shlex.split(os.environ.get("CXX") or "c++")
    include = [f"-I{path}" for path in arguments.include_dirs]
    # nvcc takes a compiler, not a command such as `ccache c++`.
    flags = [
        *include,
        *arguments.compile,
        "-Xcompiler",
        "-fPIC",
        *(["-ccbin", *host] if len(host) == 1 else []),
    ]
    link = [*arguments.link, f"-L{toolkit.home / 'lib64'}", "-lcudart"]
    (folder / "build.ninja").write_text(
        f"rule compile\n  command = {_in_ninja(str(toolkit.home / 'bin' / 'nvcc'), '-MD', '-MF')} $out.d "
        f"{_in_ninja(*flags)} -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
        f"rule link\n  command = {_in_ninja(*host)} -shared $in -o $out {_in_ninja(*link)}\n"
        + "".join(f"build {source.stem}.o: compile {_path_in_ninja(source)}\n" for source in sources)
        + f"build {name}.so: link {' '.join(f'{source.stem}.o' for source in sources)}\n"
    )
    command = ["ninja", "-v", *(["-j", jobs] if (jobs := os.environ.get("MAX_JOBS")) else [])]
    said = []
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if verbose:
                print(line, end="", file=sys.stderr)
    if process.returncode != 0:
        raise RuntimeError(f"Error building {name!r}:\n{''.join(said)}")
    if verbose:
        print(f"{name}: up to date in {time.perf_counter() - begin:.1f} s, in {folder}", file=sys.stderr)
    return folder / f"{name}.so"


def _in_ninja(*words: str) -> str:
    return shlex.join(words).replace("$", "$$")


def _path_in_ninja(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


#: Copies of a library that are kept: another process may be about to load one.
_KEPT = 4


def pinned(library: Path) -> Path:
    """A copy under a name that tells its contents: one that is loaded under a name stays what it was."""
    contents = library.read_bytes()
    copy = library.with_name(f"{library.stem}-{hashlib.sha256(contents).hexdigest()[:12]}.so")
    if not copy.exists():
        temporary = copy.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(contents)
        temporary.replace(copy)
    os.utime(copy)
    copies = sorted(library.parent.glob(f"{library.stem}-*.so"), key=lambda path: path.stat().st_mtime)
    for old in copies[:-_KEPT]:
        old.unlink(missing_ok=True)
    return copy


def build_kernels(capability: str, *, debug: bool = False, verbose: bool = False) -> Path:
    """The kernel library of an instruction set, of the sources as they are now."""
    arguments = _build.kernel_arguments(_build.capabilities()[capability])
    name = f"inplace_ext_cpu_{capability}"
    folder = _folder(name, arguments, debug)
    with locked(folder):
        sources = _build.source_files("cpu")
        return pinned(compile_library(name, sources, folder, arguments, debug=debug, verbose=verbose))


def build_bindings(*, debug: bool = False, verbose: bool = False) -> Path:
    """The module that knows torch, of the sources as they are now."""
    arguments = _build.binding_arguments()
    folder = _folder("_C", arguments, debug)
    with locked(folder):
        sources = _build.source_files("bindings")
        return pinned(compile_library("_C", sources, folder, arguments, debug=debug, verbose=verbose))


def require_cuda() -> _build.Toolkit:
    require_toolchain()
    if reason := _build.missing_cuda():
        raise NoToolchain(reason)
    toolkit = _build.find_toolkit()
    assert toolkit is not None
    return toolkit


def _cuda_arguments(debug: bool) -> _build.Arguments:
    """For the architectures that are wanted, or here."""
    architectures = _build.cuda_architectures(_build.CUDA_ARCHITECTURE)
    arguments = _build.cuda_arguments(architectures)
    more = [*_build.architecture_flags(architectures), *(_build.CUDA_DEBUG_FLAGS if debug else [])]
    return arguments._replace(compile=[*arguments.compile, *more])


def _nvcc(toolkit: _build.Toolkit) -> tuple[object, ...]:
    stat = os.stat(toolkit.home / "bin" / "nvcc")
    return (toolkit, stat.st_size, stat.st_mtime_ns)


def build_cuda(*, debug: bool = False, verbose: bool = False) -> Path:
    """The library of the CUDA kernels, of the sources as they are now."""
    toolkit = require_cuda()
    arguments = _cuda_arguments(debug)
    name = "inplace_ext_cuda"
    folder = _folder(name, arguments, debug, _nvcc(toolkit))
    with locked(folder):
        sources = _build.source_files("cuda")
        return pinned(compile_cuda_library(name, sources, folder, arguments, toolkit, verbose=verbose))


def build_cuda_operation(name: str, source: str, *, debug: bool = False, verbose: bool = False) -> Path:
    """The library of one operation for CUDA devices, as :func:`build_operation` for the CPU."""
    toolkit = require_cuda()
    arguments = _cuda_arguments(debug)

    def make(library: str, folder: Path) -> None:
        file = folder / "operation.cu"
        file.write_text(source)
        compile_cuda_library(library, [file], folder, arguments, toolkit, verbose=verbose)

    parts = (source, arguments, headers_digest("cuda"), _nvcc(toolkit), *environment())
    return _once(name, "cuda", digest(*parts), make)


def _folder(name: str, arguments: _build.Arguments, debug: bool, *parts: object) -> Path:
    kind = f"{name}-debug" if debug else name
    key = digest(_build.csrc(), arguments, _build.DEBUG_FLAGS, *parts, *environment())
    return cache() / f"{kind}-{key}"


def build_operation(
    name: str, source: str, capability: str, *, debug: bool = False, verbose: bool = False
) -> Path:
    """The library of one operation, whose source is given; compiled once for each state of csrc."""
    arguments = _build.kernel_arguments(_build.capabilities()[capability])
    flags = [*arguments.compile, *(_build.DEBUG_FLAGS if debug else [])]

    def make(library: str, folder: Path) -> None:
        require_toolchain()
        file = folder / "operation.cpp"
        file.write_text(source)
        compile_library(library, [file], folder, arguments, debug=debug, verbose=verbose)

    parts = (source, flags, arguments.link, headers_digest("cpu"), *environment())
    return _once(name, capability, digest(*parts), make)


def _once(name: str, kind: str, key: str, make: Callable[[str, Path], None]) -> Path:
    """The library of an operation, which ``make(library, folder)`` compiles where nobody has yet."""
    library = f"inplace_ext_{name}_{key}"
    folder = cache() / f"op-{name}-{kind}-{key}"
    finished = folder / "finished"
    if not finished.exists():
        with locked(folder):
            if not finished.exists():  # another process may have been faster
                make(library, folder)
                finished.touch()
    return folder / f"{library}.so"
