"""In-place operations for PyTorch tensors, with no copy, at the speed of the memory they touch.

>>> x = torch.tensor([-1.0, 0.5, 2.0])
>>> ie.clamp_(x, 0, 1)
tensor([0.0000, 0.5000, 1.0000])

Each function is named as the method of :class:`torch.Tensor` that it stands for, changes its first argument
and returns it. ``help(ie.clamp_)`` gives formula, dtypes, errors and maximum error.
"""

from inplace_ext import _ops, jit, nn
from inplace_ext._fuse import FuseError, Pipeline, fuse
from inplace_ext._gradients import clip_grad_norm_, clip_grad_value_
from inplace_ext._info import Info, info
from inplace_ext._ops import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "FuseError",
    "Info",
    "Pipeline",
    "clip_grad_norm_",
    "clip_grad_value_",
    "fuse",
    "info",
    "jit",
    "nn",
]
__all__ += _ops.__all__
