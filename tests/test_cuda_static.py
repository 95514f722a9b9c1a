"""What the compiler says of the CUDA kernels: warnings, registers, spills, the width of their accesses.

Needs nvcc, and no GPU. One architecture by default; `make cuda-check` goes through all of them.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from inplace_ext import _build

ROOT = Path(__file__).resolve().parents[1]
TOOLKIT = _build.find_toolkit()
pytestmark = [
    pytest.mark.skipif(TOOLKIT is None or shutil.which("c++filt") is None, reason="needs nvcc and c++filt"),
    pytest.mark.skipif(not (ROOT / "csrc" / "cuda").exists(), reason="needs the source tree"),
    pytest.mark.nosanitize,
]

#: Registers and threads of a multiprocessor.
REGISTERS = 65536
THREADS = {75: 1024, 80: 2048, 90: 2048, 100: 2048, 120: 1536}
SECONDS = 2 * 360  # of the processor for one architecture: six minutes on two cores

#: Kernels that use local memory: the most bytes a thread, and why.
LOCAL = [
    (
        r"run_(space|list)<(float|double), \d, true",
        96,
        "sin_ and cos_ of numbers beyond 2^24 and 2^20: the reduction of CUDA's own functions, in an array",
    ),
]
#: Kernels that spill, by architecture: the most bytes, and why.
SPILLED = [
    (
        120,
        r"rowwise::softmax_columns<(half_t|bfloat16_t), 4>",
        32,
        "32 scores a thread, and 16 columns a block, since fewer of 2 bytes were less than a sector: two "
        "registers more than that leaves. Addresses from one base fit there, and make 9.0 spill 264 bytes",
    ),
]
#: Kernels that need more registers than all threads of a multiprocessor have: how many at most, and why.
MORE_REGISTERS = [
    (r"run_(space|list)<float, 4, true", 64, "operations bound by arithmetic"),
    (r"run_(space|list)<(float, 8|double, 2), true", 85, "operations bound by arithmetic"),
    (r"run_(space|list)<float, 8, false", 64, "two packs of 16 bytes in float32 for each of 16-bit floats"),
    (r"run_(space|list)<double, 2, false", 64, "division in double precision"),
    (r"run_(space|list)<(unsigned |signed )?(char|short|int|long)", 64, "integer division and powers"),
    (r"run_space<.*unsigned long>", 64, "64-bit indices"),
    (r"rowwise::softmax_", 255, "rows are held in registers"),
    (r"draws::dropout_", 64, "two Philox blocks at a time"),
    (r"indexed::", 64, "64-bit places, several accesses of a thread on their way"),
    (r"norms::", 64, "sums in double precision, several packs on their way"),
    (r"layouts::(turn|swap)_tiles", 64, "shared memory has room for no more blocks"),
    (r"layouts::(copy_blocks|move_cycles|save_marks)", 64, "four packs on their way in each thread"),
]


@dataclass
class Kernel:
    name: str
    registers: int
    stack: int
    spilled: int


@dataclass
class Compiled:
    architecture: int
    kernels: list[Kernel]
    ptx: dict[str, str]  # by the mangled name
    seconds: float
    processor_seconds: float  # which do not depend on what else runs


def demangled(names: list[str]) -> list[str]:
    """Such as run_space<float, 4, false, unsigned int>."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    short = text.replace("inplace_ext::cuda::", "").replace("inplace_ext::", "")
    return [line.removeprefix("void ").partition("(")[0] for line in short.splitlines()]


def compile_for(architecture: int, folder: Path) -> Compiled:
    assert TOOLKIT is not None
    flags = [*_build.CUDA_FLAGS, f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    flags += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas", "-v", "--keep"]

    def compile_one(source: str) -> tuple[str, str]:
        own = folder / Path(source).stem
        own.mkdir()
        command = [str(TOOLKIT.home / "bin" / "nvcc"), *flags, "--keep-dir", str(own)]
        command += ["-c", str(ROOT / source), "-o", str(own / "out.o")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=own)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr, "".join(path.read_text() for path in own.glob("*.ptx"))

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start, before = time.monotonic(), spent()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_one, sorted(_build.sources("cuda"), key=_size, reverse=True)))
    seconds, processor_seconds = time.monotonic() - start, spent() - before
    report = re.compile(
        r"Compiling entry function '(\S+)' for[^\n]*\n"
        r"(?:ptxas info[^\n]*\n)?"
        r"\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r"(?:ptxas info\s*:\s*)Used (\d+) registers"
    )
    found = [match for text, _ in results for match in report.findall(text)]
    names = demangled([match[0] for match in found])
    kernels = [
        Kernel(name, int(registers), int(stack), int(stores) + int(loads))
        for name, (_, stack, stores, loads, registers) in zip(names, found, strict=True)
    ]
    ptx = {}
    for _, text in results:
        for entry in re.split(r"(?=\.(?:weak|visible) \.entry )", text)[1:]:
            mangled = re.search(r"\.entry (\w+)", entry)
            assert mangled is not None
            ptx[mangled[1]] = entry
    ptx = dict(zip(demangled(list(ptx)), ptx.values(), strict=True))
    return Compiled(architecture, kernels, ptx, seconds, processor_seconds)


def _size(source: str) -> int:
    return ("floats" in source) * 2 + ("integers" in source)


_done: dict[int, Compiled] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "compiled" in metafunc.fixturenames:
        asked = [int(number) for number in metafunc.config.getoption("--cuda-architectures").split(",")]
        metafunc.parametrize("compiled", asked, indirect=True, ids="sm_{}".format)


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    if request.param not in _done:
        _done[request.param] = compile_for(request.param, tmp_path_factory.mktemp(f"sm_{request.param}"))
    return _done[request.param]


def limit(rules: list[tuple[str, int, str]], name: str, otherwise: int) -> int:
    return max([most for pattern, most, _ in rules if re.match(pattern, name)] or [otherwise])


def test_every_kernel_compiles_in_time(compiled: Compiled) -> None:
    """Warnings are errors of the compiler (_build.CUDA_FLAGS)."""
    taken = f"{compiled.seconds:.0f} s ({compiled.processor_seconds:.0f} s of the processor)"
    print(f"\nsm_{compiled.architecture}: {len(compiled.kernels)} kernels in {taken}")
    assert len(compiled.kernels) > 40
    assert {"all-warnings", "-fmad=false"} <= set(_build.CUDA_FLAGS)
    assert not {"-use_fast_math", "-ftz=true"} & set(_build.CUDA_FLAGS)
    assert compiled.processor_seconds < SECONDS


def test_nothing_is_spilled(compiled: Compiled) -> None:
    spilled = [(pattern, most, why) for arch, pattern, most, why in SPILLED if arch == compiled.architecture]
    local = [*LOCAL, *spilled]
    assert {k.name: k.spilled for k in compiled.kernels if k.spilled > limit(spilled, k.name, 0)} == {}
    assert {k.name: k.stack for k in compiled.kernels if k.stack > limit(local, k.name, 0)} == {}
    # An exception that is no longer needed goes.
    assert all(any(re.match(rule[0], k.name) and k.spilled for k in compiled.kernels) for rule in spilled)


def test_registers_leave_room_for_all_threads(compiled: Compiled) -> None:
    most = min(REGISTERS // THREADS[compiled.architecture], 255)
    used = {k.name: k.registers for k in compiled.kernels}
    assert {n: r for n, r in used.items() if r > max(most, limit(MORE_REGISTERS, n, 0))} == {}
    # The kernel of cheap operations in float32, which most calls are, has no exception.
    cheap = [r for n, r in used.items() if re.match(r"run_space<float, 4, false, unsigned int>", n)]
    assert len(cheap) == 1 and cheap[0] <= most


@pytest.mark.parametrize("access", ["ld", "st"])
def test_packs_are_moved_at_once(compiled: Compiled, access: str) -> None:
    """16 bytes in one instruction, in every kernel of contiguous tensors."""
    wide = re.compile(rf"{access}\.global(\.\w+)*\.(v4\.[bfus]32|v2\.[bfus]64)")
    for name, text in compiled.ptx.items():
        packs = r"run_(space|list)<(float|double|long|int|short, 8|(un)?signed char, 16)"
        rows = (
            r"indexed::(put_(lines|mask)<16, true|add_lines<(float, 4|double, 2|half_t, 8|unsigned char, 16))"
        )
        if re.match(f"{packs}|{rows}", name):
            assert wide.search(text), name
        if re.match(r"layouts::\w+<16>", name):  # the words of blocks
            assert wide.search(text), name


def test_what_draws_has_the_constants_of_philox(compiled: Compiled) -> None:
    """As numbers in the code, where an array of the host that device code reads would not be."""
    drawing = re.compile(r"run_space<(float|double), \d, true|draws::dropout_")
    for multiplier in (0xD2511F53, 0xCD9E8D57):
        constant = re.compile(rf"\b{multiplier}\b|-{2**32 - multiplier}\b")
        has = {name for name, text in compiled.ptx.items() if constant.search(text)}
        assert has == {name for name in compiled.ptx if drawing.match(name)}
        assert len(has) == 18  # three of dropout in four dtypes, three interpreters with two sizes of index


def test_exceptions_are_needed(compiled: Compiled) -> None:
    names = [k.name for k in compiled.kernels]
    for pattern, _, reason in [*LOCAL, *MORE_REGISTERS]:
        assert any(re.match(pattern, name) for name in names), (pattern, reason)
