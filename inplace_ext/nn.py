"""Modules of the in-place operations, with the names and arguments of ``torch.nn``.

Each is a subclass of torch's module of its name, where there is one, and changes the tensor that it is given.
Where torch's module has ``inplace``, it is True by default; with False the module is torch's. None has
parameters or buffers.

>>> torch.nn.Sequential(torch.nn.Linear(8, 4), ie.nn.Dropout(0.1), ie.nn.ReLU())
Sequential(
  (0): Linear(in_features=8, out_features=4, bias=True)
  (1): Dropout(p=0.1, inplace=True)
  (2): ReLU(inplace=True)
)

While a network trains, a module may not follow one that saves its output for the backward, as most
activations and softmax do: autograd raises then. Dropout saves nothing, and so may stand before any of them;
behind them it takes ``inplace=False``.
"""

from __future__ import annotations

import torch

from inplace_ext import _ops

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "AlphaDropout",
    "Clamp",
    "Dropout",
    "FeatureAlphaDropout",
    "FeatureDropout",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSoftmax",
    "Mish",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SoftmaxReLU",
    "Softplus",
    "Tanh",
    "Threshold",
]


class CELU(torch.nn.CELU):
    """Continuously differentiable exponential linear unit: :func:`inplace_ext.celu_`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = True) -> None:
        super().__init__(alpha, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.celu_(input, self.alpha) if self.inplace else super().forward(input)


class ELU(torch.nn.ELU):
    """Exponential linear unit: :func:`inplace_ext.elu_`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = True) -> None:
        super().__init__(alpha, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.elu_(input, self.alpha) if self.inplace else super().forward(input)


class GELU(torch.nn.GELU):
    """Gaussian error linear unit, always in place: :func:`inplace_ext.gelu_`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.gelu_(input, self.approximate)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """Piecewise linear sigmoid: :func:`inplace_ext.hardsigmoid_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.hardsigmoid_(input) if self.inplace else super().forward(input)


class Hardswish(torch.nn.Hardswish):
    """Element times its hardsigmoid: :func:`inplace_ext.hardswish_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.hardswish_(input) if self.inplace else super().forward(input)


class Hardtanh(torch.nn.Hardtanh):
    """Limits to a range: :func:`inplace_ext.hardtanh_`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = True) -> None:
        super().__init__(min_val, max_val, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.hardtanh_(input, self.min_val, self.max_val) if self.inplace else super().forward(input)


class LeakyReLU(torch.nn.LeakyReLU):
    """Leaky rectified linear unit: :func:`inplace_ext.leaky_relu_`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = True) -> None:
        super().__init__(negative_slope, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.leaky_relu_(input, self.negative_slope) if self.inplace else super().forward(input)


class Mish(torch.nn.Mish):
    """Self regularized non-monotonic activation: :func:`inplace_ext.mish_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.mish_(input) if self.inplace else super().forward(input)


class ReLU(torch.nn.ReLU):
    """Rectified linear unit: :func:`inplace_ext.relu_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.relu_(input) if self.inplace else super().forward(input)


class ReLU6(torch.nn.ReLU6):
    """Rectified linear unit limited to 6: :func:`inplace_ext.relu6_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.relu6_(input) if self.inplace else super().forward(input)


class SELU(torch.nn.SELU):
    """Scaled exponential linear unit: :func:`inplace_ext.selu_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.selu_(input) if self.inplace else super().forward(input)


class SiLU(torch.nn.SiLU):
    """Element times its sigmoid: :func:`inplace_ext.silu_`."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__(inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.silu_(input) if self.inplace else super().forward(input)


class Sigmoid(torch.nn.Sigmoid):
    """Logistic function, always in place: :func:`inplace_ext.sigmoid_`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.sigmoid_(input)


class Softplus(torch.nn.Softplus):
    """Smooth rectified linear unit, always in place: :func:`inplace_ext.softplus_`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.softplus_(input, self.beta, self.threshold)


class Tanh(torch.nn.Tanh):
    """Hyperbolic tangent, always in place: :func:`inplace_ext.tanh_`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.tanh_(input)


class Threshold(torch.nn.Threshold):
    """Replaces elements that are not above a threshold: :func:`inplace_ext.threshold_`."""

    def __init__(self, threshold: float, value: float, inplace: bool = True) -> None:
        super().__init__(threshold, value, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.threshold_(input, self.threshold, self.value) if self.inplace else super().forward(input)


class Dropout(torch.nn.Dropout):
    """Drops elements while training.

    See :func:`inplace_ext.dropout_`, or :func:`inplace_ext.dropout` without ``inplace``.
    """

    def __init__(self, p: float = 0.5, inplace: bool = True) -> None:
        super().__init__(p, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        function = _ops.dropout_ if self.inplace else _ops.dropout
        return function(input, self.p, self.training)


class AlphaDropout(torch.nn.AlphaDropout):
    """Alpha dropout while training.

    See :func:`inplace_ext.alpha_dropout_`, or :func:`inplace_ext.alpha_dropout` without ``inplace``.
    """

    def __init__(self, p: float = 0.5, inplace: bool = True) -> None:
        super().__init__(p, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        function = _ops.alpha_dropout_ if self.inplace else _ops.alpha_dropout
        return function(input, self.p, self.training)


class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """Alpha dropout of whole channels while training.

    See :func:`inplace_ext.feature_alpha_dropout_`, or :func:`inplace_ext.feature_alpha_dropout` without
    ``inplace``.
    """

    def __init__(self, p: float = 0.5, inplace: bool = True) -> None:
        super().__init__(p, inplace)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        function = _ops.feature_alpha_dropout_ if self.inplace else _ops.feature_alpha_dropout
        return function(input, self.p, self.training)


class FeatureDropout(Dropout):
    """Drops whole channels while training, as ``torch.nn.Dropout1d``, ``2d`` and ``3d`` do to a batch.

    See :func:`inplace_ext.feature_dropout_`, or :func:`inplace_ext.feature_dropout` without ``inplace``.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        function = _ops.feature_dropout_ if self.inplace else _ops.feature_dropout
        return function(input, self.p, self.training)


class Clamp(torch.nn.Module):
    """Limits to the range from ``min`` to ``max``, one of which may be None: :func:`inplace_ext.clamp_`."""

    __constants__ = ("max", "min")

    def __init__(self, min: float | None = None, max: float | None = None) -> None:
        super().__init__()
        if min is None and max is None:
            raise ValueError("Clamp: give min, max or both")
        self.min = min
        self.max = max

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ops.clamp_(input, self.min, self.max)

    def extra_repr(self) -> str:
        return f"min={self.min}, max={self.max}"


class Softmax(torch.nn.Module):
    """Softmax along ``dim``: :func:`inplace_ext.softmax_`.

    ``scale`` multiplies the scores first, and ``mask``, an argument of the call, drops or shifts them. With
    ``inplace=False`` the scores are left and the result is a new tensor, :func:`inplace_ext.softmax`.
    """

    __constants__ = ("dim", "inplace", "scale")

    def __init__(self, dim: int = -1, scale: float = 1.0, inplace: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.scale = scale
        self.inplace = inplace

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        function = _ops.softmax_ if self.inplace else _ops.softmax
        return function(input, self.dim, scale=self.scale, mask=mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, scale={self.scale}, inplace={self.inplace}"


class LogSoftmax(Softmax):
    """Logarithm of the softmax along ``dim``, with the arguments of :class:`Softmax`.

    See :func:`inplace_ext.log_softmax_`, or :func:`inplace_ext.log_softmax` without ``inplace``.
    """

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        function = _ops.log_softmax_ if self.inplace else _ops.log_softmax
        return function(input, self.dim, scale=self.scale, mask=mask)


class SoftmaxReLU(Softmax):
    """Softmax, then relu, along ``dim``, with the arguments of :class:`Softmax`.

    See :func:`inplace_ext.softmax_relu_`, or :func:`inplace_ext.softmax_relu` without ``inplace``.
    """

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        function = _ops.softmax_relu_ if self.inplace else _ops.softmax_relu
        return function(input, self.dim, scale=self.scale, mask=mask)
