"""Convolutions, and how ONNX states padding."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.frontends.onnx.node import Node, row
from secateur.ir.graph import Value

AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def per_dim(n: Node, name: str, count: int, default: int) -> tuple[int, ...]:
    """An attribute with `count` entries."""
    values = tuple(n.attr(name, (default,) * count)) or (default,) * count
    if len(values) != count:
        raise n.fail(f"{name} has {len(values)} entries, {count} are needed")
    return values


def padding(
    n: Node, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """All lows, then all highs, from `pads` or `auto_pad`."""
    n.refuse("auto_pad", *AUTO_PAD)
    auto = n.attr("auto_pad", "NOTSET")
    count = len(kernel)
    if auto == "NOTSET":
        return per_dim(n, "pads", 2 * count, 0)
    if auto == "VALID":
        return (0,) * (2 * count)
    totals = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        steps = -(-size // s)
        totals.append(max(0, (steps - 1) * s + d * (k - 1) + 1 - size))
    return halves(totals, more_at_end=auto == "SAME_UPPER")


def halves(totals: Sequence[int], *, more_at_end: bool) -> tuple[int, ...]:
    """Totals split into lows and highs, an odd one going to the end or the start."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if more_at_end else (*large, *small)


def window(n: Node, x: Value, kernel: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """stride, dilation and padding of a window over the spatial dimensions of x."""
    count = x.type.rank - 2
    if len(kernel) != count or list(n.attr("kernel_shape", tuple(kernel))) != list(kernel):
        raise n.fail(f"kernel {list(kernel)} does not fit {x.type}, or kernel_shape contradicts the weights")
    stride, dilation = per_dim(n, "strides", count, 1), per_dim(n, "dilations", count, 1)
    return {
        "stride": stride,
        "dilation": dilation,
        "padding": padding(n, x.shape[2:], kernel, stride, dilation),
    }


@row("Conv")
def conv(n: Node) -> Value:
    values = [n.x(0), n.x(1), *([n.x(2)] if n.has(2) else [])]
    return n.b.conv(*values, groups=n.attr("group", 1), **window(n, values[0], values[1].shape[2:]))


@row("ConvTranspose")
def conv_transpose(n: Node) -> Value:
    """`output_shape` fixes the result and `auto_pad` says how the cropping is shared out."""
    values = [n.x(0), n.x(1), *([n.x(2)] if n.has(2) else [])]
    x, kernel = values[0], values[1].shape[2:]
    count = len(kernel)
    auto = n.attr("auto_pad", "NOTSET")
    attrs = window(n, x, kernel)
    extra = per_dim(n, "output_padding", count, 0)
    wanted = n.attr("output_shape", ())[-count:]
    if not wanted and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(size * s for size, s in zip(x.shape[2:], attrs["stride"], strict=True))
    if wanted:
        full = [
            s * (size - 1) + o + (k - 1) * d + 1
            for size, s, o, k, d in zip(x.shape[2:], attrs["stride"], extra, kernel, attrs["dilation"], strict=True)
        ]
        totals = [all_of - want for all_of, want in zip(full, wanted, strict=True)]
        extra = tuple(o + max(0, -total) for o, total in zip(extra, totals, strict=True))
        attrs["padding"] = halves([max(0, total) for total in totals], more_at_end=auto == "SAME_UPPER")
    return n.b.conv_transpose(*values, groups=n.attr("group", 1), output_padding=extra, **attrs)
