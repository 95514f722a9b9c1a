"""What a result depends on beside the case: processor, caches, kernels, torch, and the library's commit."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import torch

import inplace_ext as ie
from inplace_ext.demo import processor

ROOT = Path(__file__).resolve().parent.parent
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
#: Taken for the last-level cache where the system does not tell its size.
_UNKNOWN_CACHE = 64 << 20


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def vendor() -> str:
    """The processor's maker as it names itself: ``"GenuineIntel"``, ``"AuthenticAMD"``; empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def last_level_cache(device: str) -> int:
    """Bytes of the largest cache in front of the device's memory."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")] if _CACHES.exists() else []
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(s[:-1]) * units[s[-1]] for s in sizes if s[-1:] in units), default=_UNKNOWN_CACHE)


def available_memory(device: str) -> int:
    """Bytes that can still be had on the device."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30


def device_name(device: str) -> str:
    """The device as it stands in the results: a name without a comma, and the number of cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()} ({cores()} cores)"


def capability() -> str:
    """The instruction set of the library's kernels; torch's where the compiled module is missing."""
    return ie.info().capability or f"torch {torch.backends.cpu.get_cpu_capability().lower()}"


def _git(*arguments: str) -> str:
    where = Path(ie.__file__).parent
    run = subprocess.run(["git", "-C", where, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@functools.cache
def commit() -> str:
    """The commit of the library that is measured, ``+dirty`` where a source differs from it.

    Results and documents may differ. The version alone where the package is not that of a checkout.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--",
            *(f":/{name}" for name in ("csrc", "inplace_ext", "setup.py", "benchmarks")),
            ":(top,exclude)benchmarks/results",
        )  # fmt: skip
        return _git("rev-parse", "--short=9", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"v{ie.__version__}"


def facts(device: str) -> dict[str, str]:
    """The columns of a result that say where it was measured."""
    return {
        "device": device_name(device),
        "capability": capability() if device == "cpu" else f"sm_{''.join(map(str, _compute_capability()))}",
        "torch": torch.__version__,
        "commit": commit(),
    }


def _compute_capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()
