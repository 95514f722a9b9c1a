"""Markers, and a first line that says what is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from helpers import BACKENDS, CAPABILITIES, backend, threads

import inplace_ext as ie


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: builds or installs something; deselect with -m 'not slow'")
    config.addinivalue_line("markers", "nosanitize: not for `make sanitize`")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-architectures", default="80", help="what test_cuda_static.py compiles for, such as 75,80,90"
    )


def pytest_report_header() -> str:
    info = ie.info()
    if os.environ.get("INPLACE_EXT_SANITIZE", "0") not in ("", "0") and "sanitize" not in str(ie.__file__):
        pytest.exit(f"the sanitized package is not the one that is imported: {ie.__file__}", returncode=4)
    what = (
        f"{info.capability} of {', '.join(info.capabilities)}"
        if info.native
        else f"torch only: {info.reason}"
    )
    return f"inplace_ext {info.version} ({what}), torch {info.torch}, {info.threads} threads"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small calls wait for a pool of threads longer than they compute."""
    with threads(1):
        yield


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    with backend(request.param) as name:
        yield name


@pytest.fixture(params=BACKENDS)
def any_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set and torch in turn."""
    with backend(request.param) as name:
        yield name
