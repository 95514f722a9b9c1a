"""Markers, and a first line that says what is tested."""

from __future__ import annotations

import os

import pytest

import inplace_ext as ie


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: builds or installs something; deselect with -m 'not slow'")
    config.addinivalue_line("markers", "nosanitize: not for `make sanitize`")


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
