"""The elementwise operations in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.backends.torch.table import enter, implements

_SAME_NAME = (
    "add sub mul pow maximum minimum atan2 neg abs reciprocal square exp expm1 log1p tanh erf floor ceil trunc atan "
    "asinh cosh sinh sqrt log sin cos tan asin acos atanh acosh rsqrt round eq ne lt le gt ge isnan isinf where relu "
    "sigmoid"
)
for _name in _SAME_NAME.split():
    enter(_name, getattr(torch, _name))
_OTHER_NAME: dict[str, Callable[..., Tensor]] = {
    "div": torch.true_divide,
    "bit_and": torch.bitwise_and,
    "bit_or": torch.bitwise_or,
    "bit_xor": torch.bitwise_xor,
    "bit_not": torch.bitwise_not,
    "silu": F.silu,
    "mish": F.mish,
    "hard_swish": F.hardswish,
}
for _name, _function in _OTHER_NAME.items():
    enter(_name, _function)


def _safe(function: Callable[[Tensor, Tensor], Tensor], *, quotient: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Integers divided by 0 give 0, where torch raises; by -1 they wrap, where torch traps on the lowest one."""

    def divide(a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point():
            return function(a, b)
        zero, minus = b == 0, (b == -1) & (b < 0)
        result = function(a, b.masked_fill(zero | minus, 1)).masked_fill(zero, 0)
        return torch.where(minus, -a if quotient else torch.zeros_like(a), result)

    return divide


enter("floor_div", _safe(torch.floor_divide, quotient=True))
enter("trunc_div", _safe(lambda a, b: torch.div(a, b, rounding_mode="trunc"), quotient=True))
enter("mod", _safe(torch.remainder, quotient=False))
enter("fmod", _safe(torch.fmod, quotient=False))


@implements("sign")
def sign(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


def _count(a: Tensor, b: Tensor) -> Tensor:
    return b & (a.element_size() * 8 - 1)


@implements("shift_left")
def shift_left(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_left_shift(a, _count(a, b))


@implements("shift_right")
def shift_right(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_right_shift(a, _count(a, b))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float to integer truncates and saturates, NaN becomes 0; everything else is torch's own conversion."""
    if not x.is_floating_point() or dtype.is_floating_point or dtype is torch.bool:
        return x.to(dtype)
    limits = torch.iinfo(dtype)
    whole = x.double().trunc()
    inside = whole.masked_fill(whole.isnan() | (whole >= limits.max) | (whole <= limits.min), 0).to(dtype)
    return inside.masked_fill(whole >= limits.max, limits.max).masked_fill(whole <= limits.min, limits.min)


enter("cast", cast, exact=True)


@implements("leaky_relu")
def leaky_relu(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope)


@implements("elu")
def elu(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    return torch.where(x <= 0, torch.expm1(x * input_scale) * alpha, x) * scale


@implements("clamp")
def clamp(x: Tensor, low: float, high: float) -> Tensor:
    return torch.clamp(x, low, high)


@implements("softplus")
def softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta, threshold)


@implements("gelu")
def gelu(x: Tensor) -> Tensor:
    """Written out: F.gelu on CPU turns an infinity into NaN when it takes its vector path."""
    return x * 0.5 * (1 + torch.erf(x * 0.5**0.5))


@implements("gelu_tanh")
def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@implements("hard_sigmoid")
def hard_sigmoid(x: Tensor, **attrs: Any) -> Tensor:
    return torch.clamp(x * attrs["alpha"] + attrs["beta"], 0, 1)
