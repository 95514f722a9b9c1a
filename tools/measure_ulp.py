"""Compiles tests/cpp/math_ulp.cpp for every instruction set that this machine runs, and runs it.

    python tools/measure_ulp.py            # every float32 for exp, dense samples for the rest: minutes
    python tools/measure_ulp.py --quick    # seconds
    python tools/measure_ulp.py --time     # ns per element instead of errors

Exits with 1 where a maximum error is above its bound.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
LEVEL = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


def load_build() -> ModuleType:
    """``inplace_ext._build``, without the package around it."""
    spec = importlib.util.spec_from_file_location("_build", ROOT / "inplace_ext" / "_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    import torch

    build = load_build()
    failed = 0
    flags = build.capabilities()
    with tempfile.TemporaryDirectory() as folder:
        for name in LEVEL.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
            program = Path(folder) / name
            includes = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cpu'}"]
            source = ROOT / "tests" / "cpp" / "math_ulp.cpp"
            # The program itself uses exceptions and run-time type information, unlike the kernels.
            options = [flag for flag in build.KERNEL_FLAGS if flag not in ("-fno-exceptions", "-fno-rtti")]
            compiler = os.environ.get("CXX", "c++")
            subprocess.run(
                [compiler, *options, *flags[name], *includes, str(source), "-o", str(program)], check=True
            )
            failed |= subprocess.run([str(program), *sys.argv[1:]], check=False).returncode
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
