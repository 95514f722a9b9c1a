"""``python -m inplace_ext`` prints :func:`inplace_ext.info`."""

from inplace_ext import info

print(info())
