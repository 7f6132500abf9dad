"""What the operation that made a NaN or Inf is called, and short questions about what went into it.

A condition is a function of an `Origin`; the table of safe forms is written in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from netdoctor.recording import NORMALISED, Operand, Origin

Condition = Callable[[Origin], bool]

# The largest finite number of each format (IEEE 754 and bfloat16), and the logarithm of it: exp overflows beyond.
LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.40e38, "float64": 1.79e308}
EXP_LIMIT = {"float16": 11.09, "bfloat16": 88.72, "float32": 88.72, "float64": 709.78}

_ALIASES = {
    "div": "true_divide truediv rtruediv itruediv divide rdiv floor_divide floordiv fmod remainder mod rmod div_rn",
    "mul": "multiply rmul imul hadamard",
    "sub": "subtract rsub isub",
    "add": "radd iadd",
    "pow": "rpow ipow float_power power square pow_tensor_tensor pow_tensor_scalar",
    "acos": "arccos",
    "asin": "arcsin",
    "atanh": "arctanh",
    "acosh": "arccosh",
    "atan2": "arctan2",
    "softmax": "safe_softmax masked_softmax",
    "norm": "linalg_norm linalg_vector_norm vector_norm matrix_norm linalg_matrix_norm frobenius_norm",
    "distance": "cdist pairwise_distance pdist dist euclidean_dist pairwise_dist cdist_euclidean",
    "matmul": "mm bmm addmm baddbmm addbmm addmv mv dot einsum rmatmul tensordot inner outer linear bilinear",
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution mkldnn_convolution",
    "nll_loss": "nll_loss2d nll_loss_nd",
    "cross_entropy": "cross_entropy_loss",
    "ctc_loss": "ctcloss",
    "kl_div": "kldiv_loss",
    "mse_loss": "mseloss smooth_l1_loss huber_loss l1_loss",
    "gaussian_nll_loss": "gaussian_nllloss",
    "poisson_nll_loss": "poisson_nllloss",
    "binary_cross_entropy": "bceloss",
    "std": "std_mean",
    "var": "var_mean",
    "norm_layer": "batch_norm layer_norm group_norm instance_norm rms_norm cudnn_batch_norm local_response_norm",
    "logit": "special_logit",
    "xlogy": "special_xlogy",
    "erfinv": "special_erfinv",
    "lgamma": "special_gammaln digamma special_digamma polygamma mvlgamma",
    "to": "half type to_copy float bfloat16 autocast",
    "logdet": "slogdet linalg_slogdet linalg_det det",
    "inv": "inverse linalg_inv linalg_solve linalg_inv_ex pinverse linalg_pinv cholesky linalg_cholesky cholesky_solve",
    "eigh": "linalg_eigh linalg_svd svd linalg_eig linalg_eigvalsh symeig linalg_svdvals linalg_qr",
    "sinh": "cosh",
    "prod": "cumprod",
    "sum": "nansum",
    "masked_fill": "masked_scatter",
    "attention": "multi_head_attention_forward",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def canonical(operation: str) -> str:
    """One name for `torch.log_`, `aten::log`, `LogBackward0` and `Tensor.log`: "log"."""
    name = re.sub(r"Backward\d*$", "", operation.strip().replace("::", "."))
    name = next((part for part in reversed(name.split(".")) if part not in {"default", "out", ""}), "")
    if not name.islower():
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = name.strip("_").removeprefix("native_")
    if name.startswith("scaled_dot_product"):
        return "attention"
    return _CANONICAL.get(name, name)


def plain(operation: str) -> str:
    """What a reader calls it: the function's own name where it is one ("linear"), else the canonical name."""
    if operation.endswith(".apply"):  # the user's own autograd function
        return operation.removesuffix(".apply")
    return (
        operation
        if operation.islower() and operation.isidentifier() and "__" not in operation
        else canonical(operation)
    )


def dtype_of(origin: Origin) -> str:
    """The floating-point format that the operation worked in; float32 where it is not known."""
    names = [operand.dtype.rpartition(".")[2] for operand in (*origin.inputs, *filter(None, (origin.output,)))]
    return next((name for name in names if name in LARGEST), "float32")


def operand(origin: Origin, index: int) -> Operand | None:
    """The tensor operand at this position (negative: from the end), or None."""
    try:
        return origin.inputs[index]
    except IndexError:
        return None


def magnitude(origin: Origin) -> float:
    """The largest finite absolute value that went into the operation; 0 when nothing is known."""
    ends = [abs(end) for item in origin.inputs for end in (item.low, item.high)]
    return max((end for end in ends if end == end), default=0.0)


def forward(origin: Origin) -> bool:
    """The forward pass made it."""
    return origin.phase == "forward"


def backward(origin: Origin) -> bool:
    """The backward pass made it."""
    return origin.phase == "backward"


def every(*conditions: Condition) -> Condition:
    """All of the conditions hold."""
    return lambda origin: all(condition(origin) for condition in conditions)


def either(*conditions: Condition) -> Condition:
    """At least one condition holds."""
    return lambda origin: any(condition(origin) for condition in conditions)


def zero(index: int = 0) -> Condition:
    """The operand holds a value that is exactly 0."""
    return _asks(index, lambda x: x.zeros > 0 or x.low == 0 or x.high == 0)


def below(limit: float, index: int = 0) -> Condition:
    """The operand's smallest value is under the limit."""
    return _asks(index, lambda x: x.low < limit)


def reaches(limit: float, index: int = 0) -> Condition:
    """The operand holds a value whose magnitude is at or beyond the limit."""
    return _asks(index, lambda x: x.high >= limit or x.low <= -limit)


def infinite(index: int = 0) -> Condition:
    """The operand itself holds infinities (masks made with -inf)."""
    return _asks(index, lambda x: x.infs > 0)


def empty(index: int = 0) -> Condition:
    """The operand has no element."""
    return _asks(index, lambda x: 0 in x.shape)


def too_large_for_exp(origin: Origin) -> bool:
    """The argument is beyond what exp can represent in this format."""
    x = operand(origin, 0)
    return x is not None and max(x.high, -x.low) > 0.99 * EXP_LIMIT[dtype_of(origin)]


def made_by(*operations: str) -> Condition:
    """The operation that made the guilty input is one of these."""
    return lambda origin: canonical(origin.upstream) in operations


def born_of(*operations: str) -> Condition:
    """The operation that first made the zeros of the guilty input is one of these."""
    return lambda origin: canonical(origin.born) in operations


def attribute(name: str, value: float | bool) -> Condition:
    """A scalar argument of the operation has this value."""
    return lambda origin: origin.attributes.get(name) == value


def normalised(origin: Origin) -> bool:
    """What it makes is divided by its own sum afterwards."""
    return normalised_over(origin) != ""


def normalised_over(origin: Origin) -> str:
    """The dimension of that sum; "" where there is none."""
    return next((s.removeprefix(NORMALISED) for s in origin.downstream if s.startswith(NORMALISED)), "")


def all_targets_ignored(origin: Origin) -> bool:
    """A class-index target in which every entry is the index to ignore (-100 by default)."""
    ignored = float(origin.attributes.get("ignore_index", -100))
    return any(_integral(x) and x.low == ignored == x.high for x in origin.inputs)


def _integral(x: Operand) -> bool:
    return x.dtype.rpartition(".")[2] in {"int64", "int32", "int16", "uint8"}


def _asks(index: int, question: Callable[[Operand], bool]) -> Condition:
    def condition(origin: Origin) -> bool:
        found = operand(origin, index)
        return found is not None and question(found)

    return condition
