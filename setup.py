"""Builds inplace_ext; everything that is a choice stands in inplace_ext/_build.py."""

import importlib.util
import sys
from pathlib import Path

from setuptools import setup

# By path: the package cannot be imported before it is built.
_spec = importlib.util.spec_from_file_location(
    "_inplace_ext_build", Path(__file__).parent / "inplace_ext" / "_build.py"
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

reason = build.pure_python()
if reason:
    print(f"inplace_ext: WITHOUT the compiled module, works through torch: {reason}", file=sys.stderr)

setup(
    ext_modules=[] if reason else build.extensions(),
    cmdclass=build.commands(reason),
)
