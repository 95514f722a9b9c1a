"""The benchmarks of inplace_ext: ``python -m benchmarks`` from the root of a checkout.

``docs/benchmarks.md`` says how they are run, read and added to. Cases are defined in ``benchmarks/suites``,
one module for a suite; everything else serves all of them.
"""
