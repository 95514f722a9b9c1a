"""The op table: one line per operation. Functions, docstrings, stubs and the README are made from it.

Imports nothing but the standard library, so that ``tools/generate.py`` runs without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

EXACT = "0 ulp (bitwise torch's)"
ONE_ULP = "at most 1 ulp in float32 and float64"
TWO_ULP = "at most 2 ulp in float32 and float64"
TORCHS = "torch's"

FLOAT = ("float16", "bfloat16", "float32", "float64")
INT = ("uint8", "int8", "int16", "int32", "int64")
COMPLEX = ("complex64", "complex128")
DTYPE_GROUPS = {"float": FLOAT, "int": INT, "complex": COMPLEX}


@dataclass(frozen=True)
class Op:
    """One in-place operation, named as the method of ``torch.Tensor`` that it stands for.

    ``overloads`` are the typed parameters after ``input``, the first parameter of every operation; all
    overloads name the same parameters. ``dtypes`` are those of ``input``, groups or single ones. ``example``
    is an argument list in which a list stands for a tensor, and ``result`` the tensor it leaves. An operation
    whose ``ulp`` is not torch's has a compiled kernel; torch carries out the others. ``like`` names the
    function of torch that the operation is the in-place form of where ``torch.Tensor`` has no such method.
    """

    name: str
    overloads: tuple[str, ...] = ()
    what: str = ""
    formula: str = ""
    dtypes: str = ""
    example: str = ""
    result: str = ""
    ulp: str = TORCHS
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    like: str | None = None
    alias_of: str | None = None

    @property
    def native(self) -> bool:
        """Whether the operation has a compiled kernel: the accuracy of the others is torch's."""
        return self.ulp != TORCHS

    @property
    def in_place(self) -> bool:
        """Whether the operation changes its input, as its name says."""
        return self.name.endswith("_")

    @property
    def kernel(self) -> str | None:
        """Name of what the compiled module has for the operation, which aliases share."""
        return (self.alias_of or self.name) if self.native or self.name in LAYOUT else None

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Name and ``"=default"`` or ``""`` of each parameter; ``"*"`` where the keyword-only ones begin."""
        found = [("input", "")]
        for parameter in filter(None, self.overloads[0].split(", ")):
            typed, equals, default = parameter.partition(" = ")
            found.append((typed.partition(":")[0], equals.strip() + default))
        return found

    @property
    def parameter_names(self) -> list[str]:
        return [name.lstrip("*") for name, _ in self.parameters if name != "*"]

    @property
    def positional_names(self) -> list[str]:
        names = [name for name, _ in self.parameters]
        starred = next((i for i, name in enumerate(names) if name.startswith("*")), len(names))
        return names[:starred]

    @property
    def signature(self) -> str:
        """The signature at run time: ``"(input, other, *, alpha=1)"``."""
        return f"({', '.join(name + default for name, default in self.parameters)})"

    @property
    def takes_tensors(self) -> bool:
        """Whether a parameter beside ``input`` may be a tensor."""
        return any("Tensor" in overload for overload in self.overloads)

    @property
    def dtype_names(self) -> list[str]:
        return [name for group in self.dtypes.split() for name in DTYPE_GROUPS.get(group, (group,))]


UNARY = ("",)
OTHER = ("other: Tensor | Number",)
OTHER_TENSOR = ("other: Tensor",)
EXPONENT = ("exponent: Tensor | Number",)
ALPHA = ("other: Tensor | Number, *, alpha: Number = 1",)
ROUNDING = ("other: Tensor | Number, *, rounding_mode: RoundingMode | None = None",)
BOUNDS = (
    "min: Number | None = None, max: Number | None = None",
    "min: Tensor | None = None, max: Tensor | None = None",
)
TENSORS_VALUE = ("tensor1: Tensor, tensor2: Tensor, *, value: Number = 1",)
REPLACEMENTS = ("nan: float | None = None, posinf: float | None = None, neginf: float | None = None",)

REAL = "float int"
DISCRETE = "int bool"
ORDERED = "float int bool"
FIELD = "float complex"
NUMERIC = "float int complex"
ALL = "float int bool complex"

SCALAR_ROUNDED = "In float16 and bfloat16 a scalar is first rounded to the dtype of ``input``, as in torch."
SCALAR_KEPT = "In float16 and bfloat16 a scalar stays in float32, as in torch."
ELU_NOTE = "The factors are multiplied first and kept in float32 for float16 and bfloat16."
FUSED = "Multiplied and added with one rounding, as in torch's vector loops; the baseline rounds twice."
VALUE_KEPT = "In float16 and bfloat16 ``value`` stays in float32, as in torch."
COMPARED = "Operands are promoted; a scalar is rounded to the dtype of a float16 or bfloat16 ``input``."
EXPANDED = "``input`` may be expanded, as in torch."
ALPHA_ERROR = "RuntimeError: ``alpha`` is a float and ``input`` is an integer tensor."
BOOL_SUB_ERROR = "RuntimeError: both ``input`` and ``other`` are bool."
BOOL_ERROR = "RuntimeError: ``input`` is bool."
BOOL_INT_ERROR = "RuntimeError: ``input`` is an integer or bool tensor."
ZERO_DIVISION = "RuntimeError: integer division by zero."

# fmt: off
_LINES = [
    # Arithmetic and moves:
    Op("add_", ALPHA, "Adds ``alpha * other``", "x + alpha * other", ALL,
       "[1.0, 2.0], 10, alpha=2", "[21., 22.]", ulp=EXACT,
       notes=(SCALAR_ROUNDED,), errors=(ALPHA_ERROR,)),
    Op("sub_", ALPHA, "Subtracts ``alpha * other``", "x - alpha * other", NUMERIC,
       "[1, 2], [3, 5]", "[-2, -3]", ulp=EXACT,
       notes=(SCALAR_ROUNDED,), errors=(ALPHA_ERROR, BOOL_SUB_ERROR)),
    Op("mul_", OTHER, "Multiplies by ``other``", "x * other", ALL,
       "[1.0, -2.0], 1.5", "[ 1.5000, -3.0000]", ulp=EXACT,
       notes=(SCALAR_KEPT,)),
    Op("div_", ROUNDING, "Divides by ``other``", "x / other, as it is, truncated or floored", NUMERIC,
       "[7, -7], 2, rounding_mode='floor'", "[ 3, -4]", ulp=EXACT,
       notes=(SCALAR_KEPT, "An integer ``input`` needs ``rounding_mode``; a complex one takes none."),
       errors=("RuntimeError: ``rounding_mode`` is none of None, 'trunc' and 'floor'.", ZERO_DIVISION)),
    Op("clamp_", BOUNDS, "Limits to the range from ``min`` to ``max``", "min(max(x, min), max)", REAL,
       "[-0.5, 0.25, 3.0], 0, 1", "[0.0000, 0.2500, 1.0000]", ulp=EXACT,
       notes=("NaN in ``input`` or in a bound gives NaN, ``min > max`` gives ``max``.",
              "-0.0 stays -0.0 where a bound is 0."),
       errors=("RuntimeError: both bounds are None.",
               "TypeError: one bound is a tensor and the other a number.")),
    Op("clamp_min_", ("min: Tensor | Number",), "Raises to at least ``min``", "max(x, min)", ORDERED,
       "[-1.0, 2.0], 0", "[0., 2.]", ulp=EXACT,
       notes=("NaN in ``input`` or in ``min`` gives NaN.",)),
    Op("clamp_max_", ("max: Tensor | Number",), "Lowers to at most ``max``", "min(x, max)", ORDERED,
       "[-1.0, 2.0], 0", "[-1.,  0.]", ulp=EXACT,
       notes=("NaN in ``input`` or in ``max`` gives NaN.",)),
    Op("pow_", EXPONENT, "Raises to the power ``exponent``", "x ** exponent", NUMERIC,
       "[1.0, 2.0, 3.0], 2", "[1., 4., 9.]", ulp=ONE_ULP,
       notes=("The scalar exponents 0.5, 2, 3, -0.5, -1 and -2 are square roots, products and reciprocals,",
              "as in torch: -0.0 to the power 0.5 is -0.0.",
              "In float16 and bfloat16 a scalar exponent is first rounded to the dtype of ``input``."),
       errors=("RuntimeError: ``input`` is an integer tensor and ``exponent`` a negative number.",)),
    Op("exp_", UNARY, "Exponential", "e ** x", FIELD,
       "[0.0, 1.0]", "[1.0000, 2.7183]", ulp=TWO_ULP,
       notes=("inf gives inf, -inf gives 0, NaN gives NaN.",)),
    Op("sqrt_", UNARY, "Square root", "sqrt(x)", FIELD,
       "[4.0, 2.0]", "[2.0000, 1.4142]", ulp="0 ulp (correctly rounded)",
       notes=("A negative number gives NaN, -0.0 gives -0.0.",
              "On contiguous CPU tensors torch's own is up to 1 ulp off.")),
    Op("neg_", UNARY, "Negation", "-x", NUMERIC,
       "[1.0, -2.0]", "[-1.,  2.]", ulp=EXACT,
       notes=("The sign bit is flipped, that of zeros and NaN too.",), errors=(BOOL_ERROR,)),
    Op("relu_", UNARY, "Rectified linear unit", "max(x, 0)", REAL,
       "[-1.0, 2.0]", "[0., 2.]", ulp=EXACT,
       notes=("NaN stays NaN and -0.0 stays -0.0, as in torch.",), errors=(BOOL_ERROR,)),
    Op("fill_", ("value: Tensor | Number",), "Sets every element to ``value``", "value", ALL,
       "[1.0, 2.0], 0.5", "[0.5000, 0.5000]", ulp=EXACT,
       notes=(EXPANDED,),
       errors=("RuntimeError: ``value`` is a tensor of one dimension or more, or does not fit the dtype.",)),
    Op("zero_", UNARY, "Sets every element to zero", "0", ALL,
       "[1.0, 2.0]", "[0., 0.]", ulp=EXACT, notes=(EXPANDED,)),
    Op("copy_", ("src: Tensor | Number, non_blocking: bool = False",),
       "Copies ``src``, converted to the dtype of ``input``", "src", ALL,
       "[1.0, 2.0], [3, 4]", "[3., 4.]", ulp=EXACT,
       notes=("With ``non_blocking`` a copy between pinned memory and a GPU may return before it is done.",)),
    Op("subtract_", alias_of="sub_"),
    Op("multiply_", alias_of="mul_"),
    Op("divide_", alias_of="div_"),
    Op("true_divide_", OTHER, formula="x / other", dtypes=FIELD, example="[1.0, 3.0], 2",
       result="[0.5000, 1.5000]", notes=(SCALAR_KEPT,), errors=(BOOL_INT_ERROR,), alias_of="div_"),
    Op("clip_", alias_of="clamp_"),
    Op("negative_", alias_of="neg_"),
    # More arithmetic, bounds and selection:
    Op("abs_", UNARY, "Absolute value", "|x|", REAL, "[-1.5, 2.0]", "[1.5000, 2.0000]", ulp=EXACT),
    Op("absolute_", alias_of="abs_"),
    Op("sign_", UNARY, "Sign", "-1, 0 or 1", ORDERED, "[-1.5, 0.0, 2.0]", "[-1.,  0.,  1.]", ulp=EXACT,
       notes=("NaN and -0.0 give 0.",)),
    Op("sgn_", UNARY, "Sign, of a complex number x / |x|", "x / |x|, 0 where x = 0", ALL, "[-1.5, 0.0, 2.0]",
       "[-1.,  0.,  1.]"),
    Op("conj_physical_", UNARY, "Complex conjugate", "conj(x)", ALL, "[1.0, 2.0]", "[1., 2.]"),
    Op("reciprocal_", UNARY, "Reciprocal", "1 / x", FIELD, "[2.0, 4.0]", "[0.5000, 0.2500]", ulp=EXACT),
    Op("square_", UNARY, "Square", "x * x", NUMERIC, "[2.0, -3.0]", "[4., 9.]", ulp=EXACT),
    Op("floor_divide_", OTHER, "Divides by ``other`` and rounds down", "floor(x / other)", REAL,
       "[7, -7], 2", "[ 3, -4]", errors=(ZERO_DIVISION,)),
    Op("fmod_", OTHER, "Remainder with the sign of ``input``", "x - other * trunc(x / other)", REAL,
       "[7, -7], 4", "[ 3, -3]", errors=(ZERO_DIVISION,), ulp=EXACT,
       notes=(SCALAR_ROUNDED,)),
    Op("remainder_", OTHER, "Remainder with the sign of ``other``", "x - other * floor(x / other)", REAL,
       "[7, -7], 4", "[3, 1]", errors=(ZERO_DIVISION,), ulp=EXACT,
       notes=(SCALAR_ROUNDED,)),
    Op("float_power_", EXPONENT, "Power computed in double precision", "x ** exponent", "float64 complex128",
       "[2.0, 3.0], 2", "[4., 9.]"),
    Op("hypot_", OTHER_TENSOR, "Hypotenuse", "sqrt(x * x + other * other)", "float",
       "[3.0, 5.0], [4.0, 12.0]", "[ 5., 13.]"),
    Op("ldexp_", OTHER_TENSOR, "Multiplies by a power of two", "x * 2 ** other", FIELD, "[1.0, 3.0], [2, 3]",
       "[ 4., 24.]"),
    Op("gcd_", OTHER_TENSOR, "Greatest common divisor", "gcd(x, other)", "int", "[12, 18], [8, 27]",
       "[4, 9]"),
    Op("lcm_", OTHER_TENSOR, "Least common multiple", "lcm(x, other)", "int", "[12, 18], [8, 27]",
       "[24, 54]"),
    Op("addcmul_", TENSORS_VALUE, "Adds ``value`` times a product", "x + value * tensor1 * tensor2", NUMERIC,
       "[1.0, 1.0], [2.0, 3.0], [4.0, 5.0], value=2", "[17., 31.]", ulp=EXACT,
       notes=(FUSED, VALUE_KEPT)),
    Op("addcdiv_", TENSORS_VALUE, "Adds ``value`` times a quotient", "x + value * tensor1 / tensor2", FIELD,
       "[1.0, 1.0], [2.0, 3.0], [4.0, 4.0], value=2", "[2.0000, 2.5000]", ulp=EXACT,
       notes=(VALUE_KEPT,)),
    Op("lerp_", ("end: Tensor, weight: Tensor | Number",), "Linear interpolation towards ``end``",
       "x + weight * (end - x)", FIELD, "[0.0, 10.0], [1.0, 20.0], 0.5", "[ 0.5000, 15.0000]", ulp=EXACT,
       notes=(FUSED,)),
    Op("copysign_", OTHER, "Magnitude of ``input`` with the sign of ``other``", "|x| * sign(other)", "float",
       "[1.0, 2.0], [-1.0, 1.0]", "[-1.,  2.]"),
    Op("nextafter_", OTHER_TENSOR, "Next number towards ``other``", "nextafter(x, other)", "float",
       "[1.0, 2.0], [1.0, 2.0]", "[1., 2.]"),
    Op("heaviside_", ("values: Tensor",), "Heaviside step function", "0, values or 1 for x <, = or > 0",
       ORDERED, "[-1.0, 0.0, 2.0], [0.5, 0.5, 0.5]", "[0.0000, 0.5000, 1.0000]"),
    Op("nan_to_num_", REPLACEMENTS, "Replaces NaN and infinities",
       "nan, posinf or neginf for NaN, inf or -inf", ALL, "[1.0, float('nan')], nan=0.5", "[1.0000, 0.5000]",
       ulp=EXACT,
       notes=("By default NaN becomes 0 and an infinity the largest finite number of its sign.",)),
    Op("masked_fill_", ("mask: Tensor, value: Tensor | Number",), "Sets the elements where ``mask`` is true",
       "value where mask, else x", ALL, "[1.0, 2.0], [True, False], 0", "[0., 2.]", ulp=EXACT,
       notes=(EXPANDED,)),
    Op("where_", ("mask: Tensor, other: Tensor | Number",), "Keeps the elements where ``mask`` is true",
       "x where mask, else other", ALL, "[1.0, 2.0], [True, False], 0", "[1., 0.]", ulp=EXACT,
       notes=("The in-place form of ``torch.where(mask, input, other)``.",), like="torch.where"),
    Op("maximum_", OTHER_TENSOR, "Larger of the element and ``other``", "max(x, other)", ORDERED,
       "[1.0, 2.0], [3.0, 0.0]", "[3., 2.]", ulp=EXACT,
       notes=("NaN on either side gives NaN.",), like="torch.maximum"),
    Op("minimum_", OTHER_TENSOR, "Smaller of the element and ``other``", "min(x, other)", ORDERED,
       "[1.0, 2.0], [3.0, 0.0]", "[1., 0.]", ulp=EXACT,
       notes=("NaN on either side gives NaN.",), like="torch.minimum"),
    Op("deg2rad_", UNARY, "Degrees to radians", "x * pi / 180", "float", "[180.0, 90.0]", "[3.1416, 1.5708]"),
    Op("rad2deg_", UNARY, "Radians to degrees", "x * 180 / pi", "float", "[0.0, 1.0]", "[ 0.0000, 57.2958]"),
    # Rounding:
    Op("ceil_", UNARY, "Rounds up", "ceil(x)", REAL, "[-1.5, 1.5]", "[-1.,  2.]", ulp=EXACT),
    Op("floor_", UNARY, "Rounds down", "floor(x)", REAL, "[-1.5, 1.5]", "[-2.,  1.]", ulp=EXACT),
    Op("trunc_", UNARY, "Rounds towards zero", "trunc(x)", REAL, "[-1.5, 1.5]", "[-1.,  1.]", ulp=EXACT),
    Op("fix_", alias_of="trunc_"),
    Op("round_", ("*, decimals: int = 0",), "Rounds to the nearest, ties to even", "round(x, decimals)",
       REAL, "[1.234, 2.5], decimals=1", "[1.2000, 2.5000]", ulp=EXACT,
       notes=("With ``decimals``: rounded after a multiplication by a power of ten, then divided.",)),
    Op("frac_", UNARY, "Fractional part", "x - trunc(x)", "float", "[-1.5, 1.25]", "[-0.5000,  0.2500]",
       ulp=EXACT),
    # Exponentials, logarithms and powers:
    Op("exp2_", UNARY, "Power of two", "2 ** x", FIELD, "[1.0, 0.5]", "[2.0000, 1.4142]", ulp=TWO_ULP),
    Op("expm1_", UNARY, "Exponential minus one", "e ** x - 1", FIELD, "[0.0, 1.0]", "[0.0000, 1.7183]",
       ulp=TWO_ULP),
    Op("log_", UNARY, "Natural logarithm", "ln(x)", FIELD, "[1.0, 2.0]", "[0.0000, 0.6931]", ulp=TWO_ULP),
    Op("log2_", UNARY, "Logarithm to base 2", "log2(x)", FIELD, "[1.0, 3.0]", "[0.0000, 1.5850]",
       ulp=TWO_ULP),
    Op("log10_", UNARY, "Logarithm to base 10", "log10(x)", FIELD, "[10.0, 2.0]", "[1.0000, 0.3010]",
       ulp=TWO_ULP),
    Op("log1p_", UNARY, "Logarithm of one plus the element", "ln(1 + x)", FIELD, "[0.0, 1.0]",
       "[0.0000, 0.6931]", ulp=TWO_ULP),
    Op("rsqrt_", UNARY, "Reciprocal square root", "1 / sqrt(x)", FIELD, "[4.0, 2.0]", "[0.5000, 0.7071]",
       ulp=EXACT),
    Op("xlogy_", OTHER, "Element times the logarithm of ``other``", "x * ln(other), 0 where x = 0", "float",
       "[0.0, 1.0], 2.0", "[0.0000, 0.6931]"),
    # Trigonometric and hyperbolic:
    Op("sin_", UNARY, "Sine", "sin(x)", FIELD, "[0.0, 1.0]", "[0.0000, 0.8415]", ulp=TWO_ULP),
    Op("cos_", UNARY, "Cosine", "cos(x)", FIELD, "[0.0, 1.0]", "[1.0000, 0.5403]", ulp=TWO_ULP),
    Op("tan_", UNARY, "Tangent", "tan(x)", FIELD, "[0.0, 1.0]", "[0.0000, 1.5574]"),
    Op("asin_", UNARY, "Inverse sine", "asin(x)", FIELD, "[0.0, 0.5]", "[0.0000, 0.5236]"),
    Op("arcsin_", alias_of="asin_"),
    Op("acos_", UNARY, "Inverse cosine", "acos(x)", FIELD, "[0.0, 0.5]", "[1.5708, 1.0472]"),
    Op("arccos_", alias_of="acos_"),
    Op("atan_", UNARY, "Inverse tangent", "atan(x)", FIELD, "[0.0, 1.0]", "[0.0000, 0.7854]"),
    Op("arctan_", alias_of="atan_"),
    Op("atan2_", OTHER_TENSOR, "Angle of the point (``other``, ``input``)", "atan2(x, other)", "float",
       "[1.0, -1.0], [1.0, 1.0]", "[ 0.7854, -0.7854]"),
    Op("arctan2_", alias_of="atan2_"),
    Op("sinh_", UNARY, "Hyperbolic sine", "sinh(x)", FIELD, "[0.0, 1.0]", "[0.0000, 1.1752]"),
    Op("cosh_", UNARY, "Hyperbolic cosine", "cosh(x)", FIELD, "[0.0, 1.0]", "[1.0000, 1.5431]"),
    Op("tanh_", UNARY, "Hyperbolic tangent", "tanh(x)", FIELD, "[0.0, 1.0]", "[0.0000, 0.7616]", ulp=TWO_ULP),
    Op("asinh_", UNARY, "Inverse hyperbolic sine", "asinh(x)", FIELD, "[0.0, 1.0]", "[0.0000, 0.8814]"),
    Op("arcsinh_", alias_of="asinh_"),
    Op("acosh_", UNARY, "Inverse hyperbolic cosine", "acosh(x)", FIELD, "[1.0, 2.0]", "[0.0000, 1.3170]"),
    Op("arccosh_", alias_of="acosh_"),
    Op("atanh_", UNARY, "Inverse hyperbolic tangent", "atanh(x)", FIELD, "[0.0, 0.5]", "[0.0000, 0.5493]"),
    Op("arctanh_", alias_of="atanh_"),
    Op("sinc_", UNARY, "Normalized sinc", "sin(pi * x) / (pi * x), 1 where x = 0", FIELD, "[0.0, 0.5]",
       "[1.0000, 0.6366]"),
    # Activations, with the parameters of torch.nn.functional:
    Op("relu6_", UNARY, "Rectified linear unit limited to 6", "min(max(x, 0), 6)", REAL,
       "[-1.0, 2.0, 8.0]", "[0., 2., 6.]", ulp=EXACT, like="torch.nn.functional.relu6"),
    Op("hardtanh_", ("min_val: Number = -1.0, max_val: Number = 1.0",),
       "Limits to the range from ``min_val`` to ``max_val``",
       "min(max(x, min_val), max_val)", REAL, "[-2.0, 0.5]", "[-1.0000,  0.5000]", ulp=EXACT,
       errors=("RuntimeError: ``input`` is uint8 and a bound is negative.",),
       like="torch.nn.functional.hardtanh"),
    Op("threshold_", ("threshold: Number, value: Number",),
       "Replaces elements that are not above ``threshold``",
       "x where x > threshold, else value", REAL, "[0.5, 2.0], 1, 9", "[9., 2.]", ulp=EXACT,
       notes=("NaN stays NaN.", SCALAR_ROUNDED), like="torch.nn.functional.threshold"),
    Op("leaky_relu_", ("negative_slope: Number = 0.01",), "Leaky rectified linear unit",
       "x where x > 0, else negative_slope * x", "float", "[-1.0, 2.0], 0.5", "[-0.5000,  2.0000]", ulp=EXACT,
       notes=(SCALAR_KEPT,), like="torch.nn.functional.leaky_relu"),
    Op("hardsigmoid_", UNARY, "Piecewise linear sigmoid", "min(max(x + 3, 0), 6) / 6", "float",
       "[-4.0, 0.0, 4.0]", "[0.0000, 0.5000, 1.0000]", ulp=EXACT, like="torch.nn.functional.hardsigmoid"),
    Op("hardswish_", UNARY, "Element times its hardsigmoid", "x * min(max(x + 3, 0), 6) / 6", "float",
       "[-1.0, 4.0]", "[-0.3333,  4.0000]", ulp=EXACT,
       notes=("-inf gives NaN, as in torch.",), like="torch.nn.functional.hardswish"),
    Op("elu_", ("alpha: Number = 1.0",), "Exponential linear unit",
       "x where x > 0, else alpha * (e ** x - 1)", "float", "[-1.0, 2.0]", "[-0.6321,  2.0000]",
       ulp=TWO_ULP, notes=(ELU_NOTE,), like="torch.nn.functional.elu"),
    Op("celu_", ("alpha: Number = 1.0",), "Continuously differentiable exponential linear unit",
       "x where x > 0, else alpha * (e ** (x / alpha) - 1)", "float", "[-1.0, 2.0]", "[-0.6321,  2.0000]",
       ulp=TWO_ULP, notes=(ELU_NOTE,), errors=("RuntimeError: ``alpha`` is 0.",),
       like="torch.nn.functional.celu"),
    Op("selu_", UNARY, "Scaled exponential linear unit",
       "scale * (x where x > 0, else alpha * (e ** x - 1)), scale 1.0507, alpha 1.6733", "float",
       "[-1.0, 2.0]", "[-1.1113,  2.1014]", ulp=TWO_ULP, notes=(ELU_NOTE,), like="torch.nn.functional.selu"),
    Op("silu_", UNARY, "Element times its sigmoid", "x / (1 + e ** -x)", FIELD, "[0.0, 1.0]",
       "[0.0000, 0.7311]", ulp=TWO_ULP, notes=("-inf gives NaN, as in torch.",),
       like="torch.nn.functional.silu"),
    Op("mish_", UNARY, "Self regularized non-monotonic activation", "x * tanh(ln(1 + e ** x))", "float",
       "[0.0, 1.0]", "[0.0000, 0.8651]", ulp=TWO_ULP, notes=("-inf gives NaN, as in torch.",),
       like="torch.nn.functional.mish"),
    Op("softplus_", ("beta: Number = 1, threshold: Number = 20",), "Smooth rectified linear unit",
       "ln(1 + e ** (beta * x)) / beta, x where beta * x > threshold", "float", "[0.0, 1.0]",
       "[0.6931, 1.3133]", ulp=TWO_ULP, notes=(SCALAR_KEPT,), like="torch.nn.functional.softplus"),
    Op("gelu_", ("approximate: Approximate = 'none'",), "Gaussian error linear unit",
       "x * P(X <= x) for normal X, or x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x ** 3)))", "float",
       "[0.0, 1.0]", "[0.0000, 0.8413]", ulp=TWO_ULP,
       notes=("``approximate`` is 'none' or 'tanh'.", "-inf gives NaN and inf gives inf."),
       errors=("RuntimeError: ``approximate`` is neither 'none' nor 'tanh'.",),
       like="torch.nn.functional.gelu"),
    # Special functions:
    Op("sigmoid_", UNARY, "Logistic function", "1 / (1 + e ** -x)", FIELD, "[0.0, 1.0]", "[0.5000, 0.7311]",
       ulp=TWO_ULP,
       notes=("Exact also where torch returns 0 for a denormal result.",)),
    Op("logit_", ("eps: float | None = None",), "Logit, of ``input`` clamped to [eps, 1 - eps]",
       "ln(x / (1 - x))", "float", "[0.5, 1.0], eps=0.1", "[0.0000, 2.1972]"),
    Op("erf_", UNARY, "Error function", "erf(x)", "float", "[0.0, 1.0]", "[0.0000, 0.8427]", ulp=TWO_ULP),
    Op("erfc_", UNARY, "Complementary error function", "1 - erf(x)", "float", "[0.0, 1.0]",
       "[1.0000, 0.1573]"),
    Op("erfinv_", UNARY, "Inverse error function", "erfinv(x)", "float", "[0.0, 0.5]", "[0.0000, 0.4769]"),
    Op("lgamma_", UNARY, "Logarithm of the absolute value of the gamma function", "ln|gamma(x)|", "float",
       "[0.5, 3.0]", "[0.5724, 0.6931]"),
    Op("digamma_", UNARY, "Logarithmic derivative of the gamma function", "gamma'(x) / gamma(x)", "float",
       "[0.5, 1.0]", "[-1.9635, -0.5772]"),
    Op("polygamma_", ("n: int",), "Derivative ``n`` of the digamma function", "digamma derived n times at x",
       "float", "[1.0, 2.0], 1", "[1.6449, 0.6449]"),
    Op("mvlgamma_", ("p: int",), "Multivariate log-gamma function of dimension ``p``",
       "ln(gamma_p(x)), for x > (p - 1) / 2", "float", "[1.0, 2.0], 2", "[1.1447, 0.4516]"),
    Op("igamma_", OTHER_TENSOR, "Regularized lower incomplete gamma function", "P(x, other)", "float",
       "[1.0, 2.0], [1.0, 1.0]", "[0.6321, 0.2642]"),
    Op("igammac_", OTHER_TENSOR, "Regularized upper incomplete gamma function", "Q(x, other)", "float",
       "[1.0, 2.0], [1.0, 1.0]", "[0.3679, 0.7358]"),
    Op("i0_", UNARY, "Modified Bessel function of the first kind, order 0", "i0(x)", "float", "[0.0, 1.0]",
       "[1.0000, 1.2661]"),
    # Comparisons, which store 1 for true and 0 for false in the dtype of input:
    Op("eq_", OTHER, "Equal to ``other``", "x == other", ALL, "[1.0, 2.0], 2", "[0., 1.]", ulp=EXACT,
       notes=(COMPARED,)),
    Op("ne_", OTHER, "Not equal to ``other``", "x != other", ALL, "[1.0, 2.0], 2", "[1., 0.]", ulp=EXACT,
       notes=(COMPARED,)),
    Op("not_equal_", alias_of="ne_"),
    Op("lt_", OTHER, "Less than ``other``", "x < other", ORDERED, "[1.0, 2.0], 2", "[1., 0.]", ulp=EXACT,
       notes=(COMPARED,)),
    Op("less_", alias_of="lt_"),
    Op("le_", OTHER, "Less than or equal to ``other``", "x <= other", ORDERED, "[1.0, 3.0], 2", "[1., 0.]",
       ulp=EXACT,
       notes=(COMPARED,)),
    Op("less_equal_", alias_of="le_"),
    Op("gt_", OTHER, "Greater than ``other``", "x > other", ORDERED, "[1.0, 3.0], 2", "[0., 1.]", ulp=EXACT,
       notes=(COMPARED,)),
    Op("greater_", alias_of="gt_"),
    Op("ge_", OTHER, "Greater than or equal to ``other``", "x >= other", ORDERED, "[1.0, 2.0], 2",
       "[0., 1.]", ulp=EXACT,
       notes=(COMPARED,)),
    Op("greater_equal_", alias_of="ge_"),
    # Logical and bitwise:
    Op("logical_not_", UNARY, "Logical not", "1 where x is 0, else 0", ALL, "[0, 2]", "[1, 0]"),
    Op("logical_and_", OTHER_TENSOR, "Logical and", "x and other", ALL, "[0, 2], [1, 1]", "[0, 1]"),
    Op("logical_or_", OTHER_TENSOR, "Logical or", "x or other", ALL, "[0, 2], [0, 1]", "[0, 1]"),
    Op("logical_xor_", OTHER_TENSOR, "Logical exclusive or", "x xor other", ALL, "[0, 2], [1, 1]", "[1, 0]"),
    Op("bitwise_not_", UNARY, "Bitwise not, of bools logical not", "~x", DISCRETE, "[0, 5]", "[-1, -6]"),
    Op("bitwise_and_", OTHER, "Bitwise and", "x & other", DISCRETE, "[12, 5], 6", "[4, 4]"),
    Op("bitwise_or_", OTHER, "Bitwise or", "x | other", DISCRETE, "[12, 5], 6", "[14,  7]"),
    Op("bitwise_xor_", OTHER, "Bitwise exclusive or", "x ^ other", DISCRETE, "[12, 5], 6", "[10,  3]"),
    Op("bitwise_left_shift_", OTHER, "Shifts left by ``other`` bits", "x << other", "int", "[1, 5], 2",
       "[ 4, 20]"),
    Op("bitwise_right_shift_", OTHER, "Shifts right by ``other`` bits", "x >> other", "int", "[8, -5], 2",
       "[ 2, -2]"),
]
# fmt: on


def _resolve(lines: list[Op]) -> dict[str, Op]:
    """The table by name; an alias takes from the operation it stands for whatever its line leaves out."""
    ops: dict[str, Op] = {}
    for op in lines:
        if op.alias_of:
            given = {f.name: getattr(op, f.name) for f in fields(op) if getattr(op, f.name) != f.default}
            op = replace(ops[op.alias_of], **given)
        ops[op.name] = op
    return ops


OPS = _resolve(_LINES)

SOFTMAX = ("dim: int = -1, *, scale: float = 1.0, mask: Tensor | None = None",)
SCORES = (
    "s = scale * x, then -inf where a bool ``mask`` is False, or s + ``mask`` where it is floating.",
    "A row is the elements along ``dim``; one with NaN, inf or nothing but -inf becomes NaN, as in torch.",
)
SUMMED = "no larger than torch's, at most and on average"
ROW_ERRORS = (
    "IndexError: ``input`` has no such ``dim``.",
    "NotImplementedError: ``input`` is not floating.",
    "TypeError: ``scale`` is no real number, or ``mask`` is neither bool nor floating.",
)

#: Operations along a dim, where an element depends on those of its row. The fields mean what they do above.
ROWS = _resolve([
    Op("softmax_", SOFTMAX, "Softmax along ``dim``", "e ** s / sum(e ** s), over the row of x", "float",
       "[0.0, 1.0, 2.0]", "[0.0900, 0.2447, 0.6652]", ulp=SUMMED, notes=SCORES, errors=ROW_ERRORS,
       like="torch.softmax"),
    Op("log_softmax_", SOFTMAX, "Logarithm of the softmax along ``dim``",
       "s - ln(sum(e ** s)), over the row of x", "float",
       "[0.0, 1.0, 2.0]", "[-2.4076, -1.4076, -0.4076]", ulp=SUMMED, notes=SCORES, errors=ROW_ERRORS,
       like="torch.log_softmax"),
    Op("softmax_relu_", SOFTMAX, "Softmax along ``dim``, then relu",
       "max(e ** s / sum(e ** s), 0), over the row of x", "float",
       "[1.0, 1.0, 5.0], mask=[True, True, False]", "[0.5000, 0.5000, 0.0000]", ulp=SUMMED,
       notes=(*SCORES,
              "softmax is never negative: the relu costs nothing and changes no value. What is saved next to",
              "``relu_(softmax(x))`` is the second pass over memory and the buffer for the softmax."),
       errors=ROW_ERRORS, like="torch.softmax"),
])  # fmt: skip

DROPOUT = (
    "p: float = 0.5, training: bool = True, *, seed: int | None = None, offset: int = 0, "
    "generator: Generator | None = None",
)
DRAWN = (
    "Dropped elements are multiplied by 0: inf and NaN become NaN. With p = 0 or without ``training``",
    "nothing changes, with p = 1 all are dropped. As in torch.",
    "Element i, in C order, is kept where u >= p: u is 2 ** -24 times the lower 24 bits of word i % 4 of the",
    "Philox4x32-10 block with key ``seed`` and counter ``offset`` + i // 4. Threads, strides and device do",
    "not matter. This is version 1 of the mapping, and that of ``torch.func._random.uniform``.",
    "Without ``seed`` one is drawn from ``generator``, by default torch's: ``torch.manual_seed`` reproduces.",
)
DRAW_ERRORS = (
    "ValueError: ``p`` is not in [0, 1], ``seed`` or ``offset`` does not fit 64 bits, or ``seed`` and",
    "    ``generator`` are both given.",
    "RuntimeError: ``input`` is an integer or bool tensor.",
)
FEATURES = ("A channel is all that agrees in the first two dims, batch and channel; i counts the channels.",)
FEATURE_ERROR = "RuntimeError: ``input`` has fewer than two dims."
KEPT = "0 ulp (bitwise torch's where the same are kept)"
ALPHA_FORMULA = (
    "a * (x + 1.7581 * p) where kept, else a * 1.7581 * (p - 1); a = ((1 - p) * (1 + 3.0909 * p)) ** -0.5"
)

#: Random operations.
RANDOM = _resolve([
    Op("dropout_", DROPOUT, "Drops elements with probability ``p`` and scales the others",
       "x / (1 - p) where kept, else x * 0", FIELD,
       "[1.0, 2.0, 3.0, 4.0], seed=1", "[2., 0., 6., 0.]", ulp=KEPT, notes=DRAWN, errors=DRAW_ERRORS,
       like="torch.nn.functional.dropout"),
    Op("feature_dropout_", DROPOUT, "Drops whole channels with probability ``p`` and scales the others",
       "x / (1 - p) where its channel is kept, else x * 0", FIELD,
       "[[1.0, 2.0, 3.0, 4.0]], seed=1", "[[2., 0., 6., 0.]]", ulp=KEPT, notes=(*FEATURES, *DRAWN),
       errors=(*DRAW_ERRORS, FEATURE_ERROR), like="torch.feature_dropout"),
    Op("alpha_dropout_", DROPOUT, "Dropout that keeps the mean and variance of self-normalizing networks",
       ALPHA_FORMULA, FIELD,
       "[1.0, 2.0, 3.0, 4.0], seed=1", "[ 1.6656, -0.7792,  3.4384, -0.7792]",
       ulp=KEPT, notes=DRAWN, errors=DRAW_ERRORS,
       like="torch.nn.functional.alpha_dropout"),
    Op("feature_alpha_dropout_", DROPOUT, "Alpha dropout of whole channels",
       ALPHA_FORMULA, FIELD,
       "[[1.0, 2.0, 3.0, 4.0]], seed=1", "[[ 1.6656, -0.7792,  3.4384, -0.7792]]",
       ulp=KEPT, notes=(*FEATURES, *DRAWN),
       errors=(*DRAW_ERRORS, FEATURE_ERROR), like="torch.nn.functional.feature_alpha_dropout"),
])  # fmt: skip

SIZE = ("*shape: int | Sequence[int]",)
VIEW_ERROR = "RuntimeError: the number of elements differs, or a size is negative."
SHARED_STORAGE = (
    "RuntimeError: another tensor uses the storage of ``input`` and would see its elements elsewhere, a",
    "    base or a view that is alive (not seen: NumPy arrays, DLPack, other processes); or autograd",
    "    differentiates through ``input`` as a view.",
)
REARRANGED = (
    "Where the data moves, it stays in its storage, from the first element of ``input`` on. The scratch",
    "memory is under 800 KB, or up to ten rows and columns of matrices with sides of over 48 KB, and",
    "under 1% of a tensor above 64 MB. Gaps between the elements (``x[:, ::2]``) are closed, and what lay",
    "in them is lost. On CUDA tensors it is 576 KiB, or 0.9% of a larger tensor up to 16 MiB, or as many",
    "rows and columns. Other devices, and builds without the compiled module, need a copy.",
)
NO_DIM = "IndexError: ``input`` has no such dim."

#: Operations that change the shape or the order of a tensor, with data that moves only where it says so.
LAYOUT = _resolve([
    Op("transpose_", ("dim0: int, dim1: int",), "Swaps two dims", "x[..j..i..] = x[..i..j..]", "any",
       "[[1, 2, 3]], 0, 1", "[[1],\n        [2],\n        [3]]", errors=(NO_DIM,)),
    Op("swapaxes_", ("axis0: int, axis1: int",), alias_of="transpose_"),
    Op("swapdims_", alias_of="transpose_"),
    Op("t_", UNARY, "Transposes a matrix", "x[j, i] = x[i, j]", "any", "[[1, 2, 3]]",
       "[[1],\n        [2],\n        [3]]", errors=("RuntimeError: ``input`` has more than two dims.",)),
    Op("squeeze_", ("dim: int | Sequence[int] | None = None",),
       "Removes dims of size 1, all or the given ones", "x[i] = x[i, 0]", "any", "[[1, 2, 3]]", "[1, 2, 3]",
       errors=(NO_DIM,)),
    Op("unsqueeze_", ("dim: int",), "Inserts a dim of size 1", "x[i, 0] = x[i]", "any", "[1, 2, 3], 0",
       "[[1, 2, 3]]", errors=("IndexError: ``dim`` is out of range.",)),
    Op("as_strided_", ("size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None",),
       "Gives other sizes, strides and offset in the storage",
       "x[i, j] = storage[offset + i * stride[0] + j * stride[1]]", "any",
       "[1, 2, 3, 4], (2, 2), (1, 2)", "[[1, 3],\n        [2, 4]]",
       errors=("RuntimeError: the storage is too small, or a size is negative.",)),
    Op("resize_", ("*size: int | Sequence[int], memory_format: MemoryFormat | None = None",),
       "Gives another shape, contiguous, and a larger storage where it needs one",
       "x[i, j] = storage[offset + i * size[1] + j]", "any", "[1, 2, 3, 4], 2, 1", "[[1],\n        [2]]",
       notes=("What is beyond the old storage is undefined, as in torch.",),
       errors=("RuntimeError: ``input`` requires grad, or its storage cannot grow.",)),
    Op("view_", SIZE, "Gives another shape of the same elements, where the strides allow it",
       "x = x.view(shape)", "any", "[1, 2, 3, 4], 2, -1", "[[1, 2],\n        [3, 4]]",
       errors=("RuntimeError: dims that it would merge are no neighbours in memory; the message says which.",
               VIEW_ERROR), like="torch.Tensor.view"),
    Op("reshape_", SIZE, "Gives another shape of the same elements, rearranging them where it must",
       "x = x.reshape(shape)", "any", "[[1, 2], [3, 4]].t(), -1", "[1, 3, 2, 4]",
       notes=("Where the strides allow it, as :func:`view_`; else after :func:`contiguous_`.", *REARRANGED),
       errors=(VIEW_ERROR, *SHARED_STORAGE), like="torch.Tensor.reshape"),
    Op("contiguous_", ("memory_format: MemoryFormat | None = None",),
       "Rearranges the data into row-major order, channels_last or channels_last_3d",
       "x = x, at storage[offset + i * x.size(1) + j]", "any", "[[1, 2], [3, 4]].t()",
       "[[1, 3],\n        [2, 4]]",
       notes=("Without ``memory_format``, row-major. Where it is so already, nothing is done.", *REARRANGED),
       errors=("RuntimeError: the rank does not suit the format.", *SHARED_STORAGE),
       like="torch.Tensor.contiguous"),
])  # fmt: skip

ALONG = "dim: int, index: Tensor, "
NEGATIVE = "Negative indices count from the end."
TWICE = "Where a place comes twice, the last one stays, whatever the number of threads."
IN_ORDER = "What comes to one place is added in the order of the index, whatever the number of threads."
SHARED_INDEX = "RuntimeError: ``input`` shares memory with the index, or in part with what is written."
OUT_OF_RANGE = "IndexError: an index is out of range."
NOT_LONG = "RuntimeError: ``index`` is not int64, or {} is not of the dtype of ``input``."
SLICES = (
    "RuntimeError: the sizes of ``source`` are not those of ``input``, with those of ``index`` for ``dim``."
)
NO_INDEX = "IndexError: more indices than dims, a mask of another shape, or of a wrong dtype."
SCATTERED = (
    "``index`` and ``input`` have the same number of dims, and but for ``dim`` ``index`` is no larger.",
    "``index`` is int64 or int32, and not negative.",
)
SCATTER_ERRORS = (
    NO_DIM,
    "RuntimeError: an index is out of range, or ``index`` is of another dtype.",
    "RuntimeError: ``index`` is larger than ``input`` or ``src``, or ``src`` is of another dtype.",
    SHARED_INDEX,
)

#: Operations that write where an index or a mask says.
INDEXED = _resolve([
    Op("index_fill_", (ALONG + "value: Tensor | Number",), "Fills where ``index`` says, along ``dim``",
       "x[index[i]] = value, along dim", ALL, "[1.0, 2.0, 3.0], 0, [0, -1], 9",
       "[9., 2., 9.]", ulp=EXACT, notes=(NEGATIVE, EXPANDED),
       errors=(OUT_OF_RANGE, NO_DIM, "IndexError: ``index`` is not int64.",
               "RuntimeError: ``value`` has dims, or does not fit the dtype of ``input``.", SHARED_INDEX)),
    Op("index_copy_", (ALONG + "source: Tensor",), "Copies to where ``index`` says, along ``dim``",
       "x[index[i]] = source[i], along dim", ALL, "[1.0, 2.0, 3.0], 0, [2, 0], [7.0, 8.0]",
       "[8., 2., 7.]", ulp=EXACT, notes=(TWICE,),
       errors=(OUT_OF_RANGE, NO_DIM, NOT_LONG.format("``source``"), SLICES, SHARED_INDEX)),
    Op("index_add_", (ALONG + "source: Tensor, *, alpha: Number = 1",),
       "Adds to where ``index`` says, along ``dim``",
       "x[index[i]] += alpha * source[i], along dim", ALL,
       "[1.0, 2.0, 3.0], 0, [0, 0], [7.0, 8.0]", "[16.,  2.,  3.]", ulp=EXACT,
       notes=(IN_ORDER, "``index`` is int64 or int32. " + FUSED,
              "float16 and bfloat16 are rounded after each addition, as in torch."),
       errors=(OUT_OF_RANGE + " Torch raises a RuntimeError in some of these cases.", NO_DIM,
               "RuntimeError: ``index`` is not int64 or int32, or ``source`` is of another dtype.",
               SLICES, SHARED_INDEX)),
    Op("index_put_", ("indices: Sequence[Tensor], values: Tensor, accumulate: bool = False",),
       "Writes ``values`` where the indices say, one for each dim",
       "x[indices] = values, or x[indices] += values where accumulate", ALL,
       "[1.0, 2.0, 3.0], ([0, -1],), [7.0, 8.0]", "[7., 2., 8.]", ulp=EXACT,
       notes=(NEGATIVE + " int64, int32 or bool; a bool tensor stands for the places where it is true.",
              "The indices broadcast together, and ``values`` to what they select.", TWICE, IN_ORDER),
       errors=(OUT_OF_RANGE, NO_INDEX,
               "RuntimeError: ``values`` does not broadcast, or is of another dtype.", SHARED_INDEX)),
    Op("masked_scatter_", ("mask: Tensor, source: Tensor",),
       "Copies the elements of ``source``, one after another, to where ``mask`` is true",
       "x = the next element of source where mask, else x", ALL,
       "[1.0, 2.0, 3.0], [True, False, True], [7.0, 8.0]", "[7., 2., 8.]", ulp=EXACT,
       notes=("``mask`` broadcasts to ``input``; its elements are taken in C order.",),
       errors=("RuntimeError: ``source`` has fewer elements than are true, or is of another dtype.",
               "RuntimeError: ``mask`` is not bool.")),
    Op("scatter_", (ALONG + "src: Tensor | Number, *, reduce: Reduction | None = None",
                    ALONG + "*, value: Number, reduce: Reduction | None = None"),
       "Writes each element of ``src`` where its own index says, along ``dim``",
       "x[index[i][j]][j] = src[i][j] along dim 0, and so for others", ALL,
       "[1.0, 2.0, 3.0], 0, [2, 0], [7.0, 8.0]", "[8., 2., 7.]", ulp=EXACT,
       notes=(*SCATTERED, TWICE, "``src`` may be a number, which may also be given as ``value``.",
              "``reduce`` is 'add' or 'multiply', which torch carries out."), errors=SCATTER_ERRORS),
    Op("scatter_add_", (ALONG + "src: Tensor",),
       "Adds each element of ``src`` where its own index says, along ``dim``",
       "x[index[i][j]][j] += src[i][j] along dim 0, and so for others", ALL,
       "[1.0, 2.0, 3.0], 0, [0, 0], [7.0, 8.0]", "[16.,  2.,  3.]", ulp=EXACT,
       notes=(*SCATTERED, IN_ORDER), errors=SCATTER_ERRORS),
    Op("put_", ("index: Tensor, source: Tensor, accumulate: bool = False",),
       "Writes where ``index`` says, counting the elements of ``input`` in C order",
       "x.flatten()[index[i]] = source[i], or += where accumulate", ALL,
       "[1.0, 2.0, 3.0], [0, -1], [7.0, 8.0]", "[7., 2., 8.]", ulp=EXACT,
       notes=(NEGATIVE, TWICE, IN_ORDER),
       errors=(OUT_OF_RANGE, "IndexError: ``index`` and ``source`` have different numbers of elements.",
               NOT_LONG.format("``source``"), SHARED_INDEX)),
    Op("setitem_", ("index: Index, value: Tensor | Number",), "Assigns to what the index selects",
       "x[index] = value", ALL, "[1.0, 2.0, 3.0], slice(1, None), 0", "[1., 0., 0.]", ulp=EXACT,
       notes=("``index`` is what may stand in the brackets: ints, slices, None, an ellipsis, int64, int32",
              "and bool tensors, lists of ints or bools, and tuples of these.", TWICE,
              "A bool tensor and a number: blocks of 64 elements that are all false are passed over."),
       errors=(OUT_OF_RANGE, NO_INDEX,
               "ValueError: the step of a slice is less than 1.",
               "RuntimeError: ``value`` does not broadcast to what is selected, or is of another dtype",
               "    beside tensors in the index.", SHARED_INDEX),
       like="torch.Tensor.__setitem__"),
])  # fmt: skip

#: The twins of operations that are no methods of torch's: they leave ``input`` and return a new tensor.
TWINS = {name[:-1]: replace(op, name=name[:-1]) for name, op in {**ROWS, **RANDOM}.items()}

#: Every public operation.
ALL_OPS = {**OPS, **ROWS, **RANDOM, **LAYOUT, **INDEXED, **TWINS}

#: In-place methods of ``torch.Tensor`` that are not elementwise operations, and why.
EXCLUDED = {
    "not data": "detach_ requires_grad_ resize_as_ resize_as_sparse_ set_ share_memory_ sparse_resize_ "
    "sparse_resize_and_clear_",
    "random": "bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_",
    "a reduction where an index says": "index_reduce_ scatter_reduce_",
    "matrix products": "addbmm_ addmm_ addmv_ addr_ baddbmm_",
    "an element depends on others": "cumprod_ cumsum_ renorm_",
    "an element depends on its position": "fill_diagonal_ tril_ triu_",
    "calls Python for each element": "apply_ map_ map2_",
}
