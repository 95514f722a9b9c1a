"""The emulation reports faults of kernels: a test that it would see one."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys

import emulated
import pytest
import torch
from emulated import SANITIZER

pytestmark = emulated.needs_device
N = 100  # not a multiple of a block


@functools.cache
def faults() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulated.build("faults", "faults.cpp")))


def report(kernel: str, guarded: int = 0) -> str:
    """What is reported of the kernel: nothing if all is well."""
    whole = torch.ones(2 * N)
    whole[64:] = 3  # beyond the first block
    assert whole.data_ptr() % 16 == 0
    text = ctypes.create_string_buffer(1000)
    faults().inplace_ext_emulate_fault(
        kernel.encode(), ctypes.c_void_p(whole.data_ptr()), N, guarded, text, len(text)
    )
    assert (whole[N:] == 3).all()
    return text.value.decode()


@pytest.mark.parametrize(
    "kernel",
    ["sums_of_all", "half_warps", "neighbours", "warp_neighbours", "tail", "pack", "all_write_the_same"],
)
def test_sound_kernels_run(kernel: str) -> None:
    assert report(kernel) == ""


FAULTS = {
    "barrier_of_some": "threads of the block",
    "barriers_apart": "other threads of the block wait at faults.cpp",
    "tail_too_long": "block (1, 0, 0), thread (36, 0, 0): reads 4 bytes of global memory out of bounds, "
    "0 bytes beyond",
    "shuffle_from_gone": "left the kernel",
    "shuffle_from_outside": ", which takes no part",
    "shuffle_in_branch": "that never come",
    "vote_without_itself": "the caller is not in its mask ffff0000",
    "pack_misaligned": "reads 16 bytes of global memory misaligned, at byte",
    "beyond_shared": "bytes at byte 256 of the shared array shared of 256 bytes, out of bounds",
    "beyond_dynamic": "of the shared array shared of 8 bytes, out of bounds",
    "assertion": "device-side assertion failed: x is too large",
    "too_many_threads": "blocks of (2048, 1, 1) threads",
    "too_much_shared": "bytes of shared memory",
}
#: Seen by the fibers' own bookkeeping; where threads are real, ThreadSanitizer reports them.
RACES = {
    "neighbours_without_barrier": "with no barrier in between",
    "warp_neighbours_without_barrier": "with no barrier in between",
    "across_blocks": "with no barrier in between",
    "all_write_one": "touches, with no barrier in between",
    "not_the_same": "touches, with no barrier in between",
    "same_beside_others": "touches, with no barrier in between",
    "never_written": "which nobody has written",
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_faults_are_reported(kernel: str) -> None:
    text = report(kernel)
    assert text.startswith("emulated device: ") and FAULTS[kernel] in text, text


@pytest.mark.skipif(SANITIZER == "thread", reason="ThreadSanitizer's business")
@pytest.mark.parametrize("kernel", RACES)
def test_conflicts_between_threads_are_reported(kernel: str) -> None:
    text = report(kernel)
    # A thread that comes too early reads what nobody has written yet.
    early = kernel.endswith("without_barrier") and RACES["never_written"] in text
    assert RACES[kernel] in text or early, text


@pytest.mark.skipif(SANITIZER != "thread", reason="needs ThreadSanitizer")
@pytest.mark.parametrize(
    "kernel", ["neighbours_without_barrier", "warp_neighbours_without_barrier", "all_write_one"]
)
def test_thread_sanitizer_sees_conflicts(kernel: str) -> None:
    program = f"import test_emulated_faults as t; print(t.report({kernel!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=emulated.ROOT / "tests", capture_output=True, text=True
    )
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr, done.stderr


def test_writing_where_only_reading_is_allowed_is_reported() -> None:
    assert "that is only to be read" in report("tail_too_long", guarded=1)
