"""Measures the maximum errors of the vector math on every instruction set that this machine runs.

    python tools/measure_ulp.py            # everything, about half an hour; writes docs/accuracy.md
    python tools/measure_ulp.py --quick    # samples, seconds for each instruction set; writes nothing
    python tools/measure_ulp.py --time     # ns per element instead of errors

Compiles tests/cpp/math_ulp.cpp, which holds each function to its bound against the C library in a wider
type, and compares what the functions of one float64 give with mpmath. Exits with 1 where an error is above
its bound.
"""

from __future__ import annotations

import os
import runpy
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "accuracy.md"

#: The functions of one argument, exactly.
EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": mpmath.exp,
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log2": lambda x: mpmath.log(x) / mpmath.log(2),
    "log10": mpmath.log10,
    "log1p": mpmath.log1p,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "erf": mpmath.erf,
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "softplus": lambda x: x if x > 20 else mpmath.log1p(mpmath.exp(x)),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: (
        x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
    ),
}
#: Numbers that are compared with mpmath, for each function and instruction set.
SAMPLES, QUICK_SAMPLES = 5_000, 1_000


@dataclass
class Worst:
    """The largest error of a function in one type, over all kinds of inputs."""

    error: float = 0.0
    where: str = ""
    count: int = 0
    bound: float = 0.0

    def add(self, error: float, where: str, count: int, bound: float) -> None:
        self.count += count
        self.bound = bound
        if error > self.error:
            self.error, self.where = error, where


Results = dict[tuple[str, str], Worst]


def compile_program(build: dict[str, Any], capability: str, folder: str) -> Path:
    program = Path(folder) / capability
    includes = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cpu'}"]
    source = ROOT / "tests" / "cpp" / "math_ulp.cpp"
    # The program itself uses exceptions and run-time type information, unlike the kernels.
    options = [flag for flag in build["KERNEL_FLAGS"] if flag not in ("-fno-exceptions", "-fno-rtti")]
    flags = build["capabilities"]()[capability]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *options, *flags, *includes, str(source), "-o", str(program)], check=True)
    return program


def pairs(program: Path, name: str, count: int) -> Iterator[tuple[float, float]]:
    data = subprocess.run([program, "--dump", name, str(count)], stdout=subprocess.PIPE, check=True).stdout
    yield from struct.iter_unpack("dd", data)


def error_in_ulp(y: float, exact: Any) -> float:
    """|y - exact| in units of the distance of neighbouring float64 numbers at the exact result."""
    if exact == 0:
        return 0.0 if y == 0 else float("inf")
    exponent = max(int(mpmath.floor(mpmath.log(abs(exact), 2))), -1022)
    top = mpmath.mpf(2) ** 1024
    difference = abs(max(-top, min(top, mpmath.mpf(y))) - max(-top, min(top, exact)))
    return float(difference / mpmath.mpf(2) ** (exponent - 52))


def compare_with_mpmath(program: Path, name: str, count: int) -> Worst:
    worst = Worst()
    # Where the exact result is of no use: too large for mpmath, or nothing but 0, 1, -1 or x.
    limit = 1e5 if name in ("sin", "cos") or name.startswith("log") else 1e3
    with mpmath.workprec(160):
        for x, y in pairs(program, name, count):
            if not abs(x) <= limit or (name.startswith("log") and x <= (-1 if name == "log1p" else 0)):
                continue
            # A tiny argument needs the bits that 1 + x would lose.
            with mpmath.extraprec(0 if abs(x) > 1e-30 else 2200):
                worst.add(error_in_ulp(y, EXACT[name](mpmath.mpf(x))), x.hex(), 1, 0)
    return worst


def measure(capability: str, program: Path, quick: bool) -> tuple[Results, bool]:
    """The results of one instruction set, and whether all were within their bounds."""
    results: Results = {}
    process = subprocess.Popen([program, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        name, kind, inputs, count, error, bound, where = line.rstrip("\n").split("\t")
        # Of the samples of float only those of more than one argument are not covered by every number.
        results.setdefault((name, kind), Worst()).add(float(error), where, int(count), float(bound))
        print(f"{capability:9} {name:10} {kind:7} {inputs:34} {count:>11} {error:>9} of {bound}", flush=True)
    good = process.wait() == 0
    for name in EXACT:
        worst = compare_with_mpmath(program, name, QUICK_SAMPLES if quick else SAMPLES)
        result = results[name, "double"]
        within = worst.error <= result.bound
        good &= within
        mark = "" if within else "  ABOVE THE BOUND"
        print(
            f"{capability:9} {name:10} double  {'mpmath':34} {worst.count:>11} {worst.error:9.4f} of "
            f"{result.bound}{mark}  {worst.where}",
            flush=True,
        )
        result.add(worst.error, worst.where, worst.count, result.bound)
    return results, good


def report(results: dict[str, Results]) -> str:
    """The page of the documentation."""
    capabilities = list(results)
    lines = [
        "# Accuracy of the vector math",
        "",
        "Written by `make ulp`; do not edit. Maximum errors in ulp, the distance of neighbouring numbers at",
        "the exact result, denormal ones included.",
        "",
        "- float32: every one of the 2^32 inputs of a function of one argument (in the baseline every 16th),",
        "  against the float64 kernel of the function and, where an error is the largest so far, the C",
        "  library's; `pow` on dense samples.",
        "- float64: samples of ordinary, small, special and any numbers against the C library's long double,",
        f"  and {SAMPLES} of each function against mpmath.",
        "",
        "float16 and bfloat16 are computed in float32 and rounded once. gelu_tanh is `gelu_` with",
        "approximate='tanh'; softplus has beta=1 and threshold=20. `elu_`, `celu_` and `selu_` are expm1",
        "times factors that are rounded first.",
        "",
    ]
    for kind, title in (("float", "float32"), ("double", "float64")):
        lines += [
            f"## {title}",
            "",
            f"| function | {' | '.join(capabilities)} | bound | largest error at |",
            f"| --- |{' ---: |' * (len(capabilities) + 1)} --- |",
        ]
        names = [name for name, k in results[capabilities[0]] if k == kind]
        for name in names:
            each = [results[c][name, kind] for c in capabilities]
            errors = " | ".join(f"{w.error:.2f}" for w in each)
            bound = max(w.bound for w in each)
            where = max(each, key=lambda w: w.error).where
            lines.append(
                f"| `{name}` | {errors} | {bound:g} | {where if any(w.error for w in each) else ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    import torch

    build = runpy.run_path(str(ROOT / "inplace_ext" / "_build.py"))
    quick, timing = "--quick" in sys.argv[1:], "--time" in sys.argv[1:]
    names = [
        n for n in build["runnable"](torch.backends.cpu.get_cpu_capability()) if n in build["capabilities"]()
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        programs = dict(zip(names, pool.map(lambda n: compile_program(build, n, folder), names), strict=True))
        if timing:
            for program in programs.values():
                subprocess.run([program, "--time"], check=True)
            return 0
        # mpmath keeps the interpreter busy, so there is nothing to gain from more threads than two.
        outcomes = list(pool.map(lambda item: measure(*item, quick), programs.items()))
    good = all(outcome[1] for outcome in outcomes)
    print("all within their bounds" if good else "FAILED: an error is above its bound")
    if not quick:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(report(dict(zip(names, (o[0] for o in outcomes), strict=True))))
        print(f"wrote {REPORT.relative_to(ROOT)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
