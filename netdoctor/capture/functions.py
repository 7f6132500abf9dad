"""What torch's functions are, by name: the kinds that make a layer, those that change their argument, those that say nothing."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from netdoctor.recording import Kind

_KINDS = {
    Kind.LINEAR: "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Kind.ACTIVATION: "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardsigmoid hardswish softplus"
    " softsign prelu rrelu threshold logsigmoid tanhshrink softshrink hardshrink glu",
    Kind.NORM: "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm",
    Kind.RECURRENT: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    Kind.ATTENTION: "multi_head_attention_forward scaled_dot_product_attention",
    Kind.EMBEDDING: "embedding embedding_bag",
    Kind.SOFTMAX: "softmax log_softmax softmin gumbel_softmax",
}
KINDS: dict[str, Kind] = {name: kind for kind, names in _KINDS.items() for name in names.split()}
PRODUCTS = frozenset(
    {
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "einsum",
        "__matmul__",
        "__rmatmul__",
        "baddbmm",
        "mv",
        "dot",
        "tensordot",
        "addmv",
    }
)
# Functions that only ask about a tensor or set a mode; they make no value that a loss could depend on.
SILENT = frozenset(
    [
        "size",
        "dim",
        "numel",
        "ndimension",
        "stride",
        "is_floating_point",
        "is_contiguous",
        "is_complex",
        "element_size",
        "data_ptr",
        "storage_offset",
        "type",
        "get_device",
        "nelement",
        "storage",
        "untyped_storage",
        "register_hook",
        "retain_grad",
        "is_pinned",
        "has_names",
        "_is_view",
        "is_same_size",
        "is_tensor",
        "register_post_accumulate_grad_hook",
        "__len__",
        "__repr__",
        "__hash__",
        "__format__",
        "__bool__",
        "__int__",
        "__index__",
        "_set_grad_enabled",
        "backward",
        "save",
        "__reduce_ex__",
        "__deepcopy__",
        "is_shared",
        "_nested_tensor_size",
        "is_inference",
        "is_signed",
    ]
)
_PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag", "data"})  # the properties that are tensors of their own
_SETTERS = frozenset({"__setitem__", "__set__", "index_put_", "requires_grad_"})


def function_name(function: Callable[..., Any]) -> str:
    """The plain name: "relu" for `F.relu`, `Tensor.relu` and `torch.relu_`; the property's name for getters ("T", "data")."""
    name = getattr(function, "__name__", "") or type(function).__name__
    if name == "__get__":
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name


def is_silent(function: Callable[..., Any], name: str) -> bool:
    """Whether a call makes nothing that a loss could depend on."""
    return name in SILENT or (getattr(function, "__name__", "") == "__get__" and name not in _PROPERTIES)


_spoken: dict[Any, str] = {}


def spoken_name(function: Callable[..., Any]) -> str:
    """The name of a function whose calls matter, "" for a silent one; remembered, as this is asked for every call."""
    try:
        return _spoken[function]
    except KeyError:
        name = function_name(function)
        _spoken[function] = found = "" if is_silent(function, name) else name
        return found
    except TypeError:  # a callable without a hash
        name = function_name(function)
        return "" if is_silent(function, name) else name


def plain(name: str) -> str:
    """The name without in-place underscore and without the dunder of an operator: "add" for `__iadd__`, `add_`, `__radd__`."""
    if name.startswith("__") and name.endswith("__"):
        bare = name[2:-2]
        return {"rdiv": "div", "truediv": "div", "rtruediv": "div", "rsub": "rsub", "rpow": "rpow"}.get(bare, bare)
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def reflection(name: str) -> dict[str, float | str | bool]:
    """{"reflected": True} where the first operand is the one below the line: `2 / x`."""
    return {"reflected": True} if name in ("__rdiv__", "__rtruediv__") else {}


def mutates(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the call changes its first argument in place."""
    return _in_place(name) or (bool(kwargs) and kwargs.get("inplace") is True)


@functools.lru_cache(maxsize=1024)
def _in_place(name: str) -> bool:
    if name in _SETTERS:
        return True
    if name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"):
        return True
    return name.endswith("_") and not name.endswith("__")


_DRAWING = re.compile(
    "drop|rand|normal|bernoulli|multinomial|poisson|binomial|uniform|exponential|cauchy|geometric|gamma|dirichlet|rrelu|gumbel"
    "|fractional|attention|lstm|gru|rnn|^apply$|^__call__$|checkpoint|^map_?$|^cond$|scan|^init_"
)


def may_draw(function: Callable[..., Any], name: str) -> bool:
    """Whether a call may ask a random generator: by its name among torch's own functions, always among others."""
    home: str = getattr(function, "__module__", None) or "torch"  # built-in functions say none
    return not home.startswith("torch") or _draws(name)


@functools.lru_cache(maxsize=1024)
def _draws(name: str) -> bool:
    return _DRAWING.search(name) is not None


def is_library_leaf(module: nn.Module) -> bool:
    """A module of torch.nn itself, whose one operation is what it is there for."""
    return type(module).__module__.startswith("torch.nn.modules") and not isinstance(
        module, nn.Sequential | nn.ModuleList | nn.ModuleDict
    )
