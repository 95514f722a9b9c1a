"""Loads the compiled module and the kernels of the instruction set that torch reports."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType

import torch

from inplace_ext import _build


def _compiles() -> bool:
    """Whether INPLACE_EXT_JIT asks for everything to be compiled at import."""
    return os.environ.get("INPLACE_EXT_JIT", "0") not in ("", "0")


def supported_capabilities() -> list[str]:
    """The kernel libraries that are built and that torch's choice of instruction set allows."""
    names = _build.runnable(torch.backends.cpu.get_cpu_capability())
    if _compiles():
        return [name for name in names if name in _compiled]  # those beside the package are of other sources
    return [name for name in names if library(name).exists()]


#: Libraries that were compiled at run time, by capability.
_compiled: dict[str, Path] = {}


def replace_library(capability: str, path: Path) -> None:
    """Says that kernels are those of another file from now on."""
    _compiled[capability] = path


def library(capability: str) -> Path:
    if capability in _compiled:
        return _compiled[capability]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return Path(__file__).with_name(f"_cpu_{capability}{suffix}")


def _how() -> dict[str, bool]:
    words = os.environ["INPLACE_EXT_JIT"].split(",")
    if unknown := set(words) - {"1", "debug", "verbose"}:
        raise ValueError(f"INPLACE_EXT_JIT must be 1, or debug or verbose or both, got {unknown.pop()!r}")
    return {"debug": "debug" in words, "verbose": "verbose" in words}


def _compile() -> ModuleType:
    """The module of the sources as they are now, and its kernels; what the compiler says is the error."""
    from inplace_ext import _toolchain

    how = _how()
    _toolchain.require_toolchain()
    name = _build.runnable(torch.backends.cpu.get_cpu_capability())[0]
    name = name if name in _build.capabilities() else "baseline"
    replace_library(name, _toolchain.build_kernels(name, **how))
    path = str(_toolchain.build_bindings(**how))
    spec = importlib.util.spec_from_file_location("inplace_ext._C", path)
    assert spec is not None and spec.loader is not None
    _C = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_C)
    sys.modules["inplace_ext._C"] = _C
    _C.load_kernels(str(library(name)))
    _C.use_capability(name)
    return _C


def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and the reason."""
    if os.environ.get("INPLACE_EXT_DISABLE_NATIVE", "0") not in ("", "0"):
        return None, "INPLACE_EXT_DISABLE_NATIVE is set"
    if _compiles():
        return _compile(), None
    try:
        _C = importlib.import_module("inplace_ext._C")
    except ModuleNotFoundError:
        return None, _build.recorded_reason() or "it is not built"
    except ImportError as error:
        return None, str(error)
    reason = "no kernel library is beside the compiled module"
    for name in supported_capabilities():
        try:
            _C.load_kernels(str(library(name)))
            if name == "avx512" and library("avx2").exists():
                _C.load_kernels(str(library("avx2")))  # which serves what is bound by memory
            _C.use_capability(name)
            return _C, None
        except RuntimeError as error:
            reason = str(error)
    return None, reason


def _load_cuda() -> tuple[tuple[int, str] | None, str | None]:
    """Of the CUDA kernels the version of their toolkit and the architectures, or None and the reason."""
    if module is None:
        return None, reason
    library = Path(__file__).with_name(f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}")
    if _compiles():
        from inplace_ext import _toolchain

        if without := _build.no_cuda():
            return None, without
        library = _toolchain.build_cuda(**_how())
    if not library.exists():
        return None, _build.recorded_cuda_reason() or "they are not built"
    try:
        return use_cuda_library(library), None
    except RuntimeError as error:
        return None, str(error)


def use_cuda_library(path: Path) -> tuple[int, str]:
    """Has the module run the CUDA kernels of this file from now on."""
    global cuda, cuda_reason, cuda_library, devices
    assert module is not None
    found: tuple[int, str] = module.load_cuda_kernels(str(path))
    cuda, cuda_reason, cuda_library, devices = found, None, path, ("cpu", "cuda")
    return found


module, reason = _load()
#: The file of the CUDA kernels in use.
cuda_library: Path | None = None
#: Types of the devices whose tensors the kernels take.
devices: tuple[str, ...] = ("cpu",)
cuda, cuda_reason = _load_cuda()
_enabled = True


def operators() -> bool:
    """Whether ``torch.ops.inplace_ext`` is there and in use."""
    return module is not None and _enabled


def enabled() -> bool:
    """What ``set_enabled()`` has been told."""
    return _enabled


def set_enabled(enabled: bool) -> None:
    """With False everything goes through torch, on every thread."""
    global _enabled
    _enabled = enabled
    if module is not None:
        module.set_enabled(enabled)


if module is None:
    warnings.warn(
        f"inplace_ext runs without its compiled module ({reason}): every operation goes through torch. "
        "To build it, run `pip install --no-build-isolation .` in a source checkout with a C++20 compiler.",
        RuntimeWarning,
        # The line that imports the package: above this module are _ops and __init__.
        stacklevel=4,
    )
