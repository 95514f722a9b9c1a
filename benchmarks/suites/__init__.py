"""The suites by name. A suite is a module here with a function that makes its list of cases."""

from __future__ import annotations

from benchmarks.case import Suite
from benchmarks.suites import dropout, fuse, layouts, lists, ops, overhead, softmax

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        ops.SUITE,
        fuse.SUITE,
        softmax.SUITE,
        dropout.SUITE,
        lists.SUITE,
        overhead.SUITE,
        layouts.SUITE,
    )
}
