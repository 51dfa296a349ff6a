"""Reductions along axes, running sums, and sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from secateur.ir.draw import Draw, Sample
from secateur.ir.graph import Op
from secateur.ir.opdef import Attr, DimLink, OpDef, define, operands
from secateur.ir.ops._common import check_axes, check_axis, draw_axis, identity_links, wide
from secateur.ir.types import FLOATS, NUMERIC, DType, TensorType

Ints = tuple[int, ...]


def _reduced(x: TensorType, axes: Sequence[int], keepdims: bool) -> TensorType:
    check_axes(axes, x.rank)
    if keepdims:
        return x.with_shape([1 if dim in axes else size for dim, size in enumerate(x.shape)])
    return x.with_shape([size for dim, size in enumerate(x.shape) if dim not in axes])


def _reduced_links(op: Op) -> list[DimLink]:
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    kept = [dim for dim in range(op.operands[0].type.rank) if dim not in axes]
    return [DimLink(0, dim, dim if op.attrs["keepdims"] else place) for place, dim in enumerate(kept)]


def _input_flops(op: Op) -> int:
    return op.operands[0].type.numel


def _reduction(
    name: str, function: Callable[..., Any], dtypes: tuple[DType, ...], doc: str, *, needs_elements: bool = False
) -> None:
    def infer(x: TensorType, *, axes: Ints, keepdims: bool) -> TensorType:
        result = _reduced(x, axes, keepdims)
        if needs_elements and x.numel == 0 and result.numel:
            raise ValueError(f"there is no {name.removeprefix('reduce_')} of no elements")
        return result

    def reference(x: np.ndarray, *, axes: Ints, keepdims: bool) -> np.ndarray:
        shape = _reduced(TensorType.of(x), axes, keepdims).shape
        if x.size == 0 and 0 in shape:
            return np.empty(shape, x.dtype)
        return np.asarray(function(wide(x), axis=axes, keepdims=keepdims)).astype(x.dtype)

    def sample(draw: Draw) -> Sample:
        shape = draw.shape(empty=not needs_elements)
        axes = tuple(sorted(draw.permutation(len(shape))[: draw.int(0, len(shape))]))
        array = draw.tensor(draw.choice(dtypes), shape)
        if name == "reduce_prod" and array.dtype.kind not in "iu":
            # Near 1, so that whether a product overflows on the way does not hang on the order.
            near = np.copysign(draw.rng.uniform(0.5, 1.5, shape), wide(array)).astype(array.dtype)
            array = np.where(np.isfinite(array) & (array != 0), near, array)
        return Sample((array,), {"axes": axes, "keepdims": draw.bool()})

    define(
        OpDef(
            name=name,
            doc=doc,
            operands=operands("x", x=dtypes),
            attrs={"axes": Attr("ints"), "keepdims": Attr("bool", False)},
            infer=infer,
            reference=reference,
            sample=sample,
            flops=_input_flops,
            dim_links=_reduced_links,
        )
    )


def _sum(x: np.ndarray, **where: Any) -> Any:
    return np.sum(x, dtype=x.dtype, **where)


def _mean(x: np.ndarray, axis: Ints, keepdims: bool) -> Any:
    count = np.prod([x.shape[dim] for dim in axis], dtype=np.int64)
    return np.sum(x, axis=axis, keepdims=keepdims) / x.dtype.type(count)


def _prod(x: np.ndarray, **where: Any) -> Any:
    return np.prod(x, dtype=x.dtype, **where)


_reduction("reduce_sum", _sum, NUMERIC, "Sum along `axes`; integers wrap, no elements give 0.")
_reduction("reduce_mean", _mean, FLOATS, "Mean along `axes`; NaN for no elements.")
_reduction("reduce_prod", _prod, NUMERIC, "Product along `axes`; integers wrap, no elements give 1.")
_reduction("reduce_max", np.max, NUMERIC, "Largest along `axes`; NaN if there is one.", needs_elements=True)
_reduction("reduce_min", np.min, NUMERIC, "Smallest along `axes`; NaN if there is one.", needs_elements=True)
_reduction("reduce_any", np.any, (DType.BOOL,), "Whether one element along `axes` is true.")
_reduction("reduce_all", np.all, (DType.BOOL,), "Whether all elements along `axes` are true.")


# argmax, argmin -----------------------------------------------------------------------------------


def _arg_reduction(name: str, function: Callable[..., Any], doc: str) -> None:
    def infer(x: TensorType, *, axis: int, keepdims: bool) -> TensorType:
        check_axis(axis, x.rank)
        result = _reduced(x, [axis], keepdims).with_dtype(DType.I64)
        if x.shape[axis] == 0 and result.numel:
            raise ValueError(f"there is no {name} of no elements")
        return result

    def reference(x: np.ndarray, *, axis: int, keepdims: bool) -> np.ndarray:
        result = infer(TensorType.of(x), axis=axis, keepdims=keepdims)
        if result.numel == 0:
            return np.empty(result.shape, np.int64)
        return np.asarray(function(wide(x), axis=axis, keepdims=keepdims)).astype(np.int64)

    def sample(draw: Draw) -> Sample:
        shape = draw.shape(1, empty=False)
        array = draw.tensor(draw.choice(NUMERIC), shape)
        if draw.bool(0.3):
            array = np.round(wide(array)).astype(array.dtype)  # ties
        return Sample((array,), {"axis": draw_axis(draw, len(shape)), "keepdims": draw.bool()})

    define(
        OpDef(
            name=name,
            doc=doc,
            operands=operands("x", x=NUMERIC),
            attrs={"axis": Attr("int"), "keepdims": Attr("bool", False)},
            infer=infer,
            reference=reference,
            sample=sample,
            flops=_input_flops,
            dim_links=_reduced_links,
        )
    )


_arg_reduction("argmax", np.argmax, "Index (i64) of the first NaN along `axis`, else of the first largest element.")
_arg_reduction("argmin", np.argmin, "Index (i64) of the first NaN along `axis`, else of the first smallest element.")


# cumsum, cumprod ----------------------------------------------------------------------------------


def _cumulative(name: str, ufunc: np.ufunc, start: int, doc: str) -> None:
    def infer(x: TensorType, *, axis: int, exclusive: bool, reverse: bool) -> TensorType:
        check_axis(axis, x.rank)
        return x

    def reference(x: np.ndarray, *, axis: int, exclusive: bool, reverse: bool) -> np.ndarray:
        work = np.moveaxis(wide(x), axis, -1)
        work = work[..., ::-1] if reverse else work
        if exclusive and work.shape[-1]:
            work = np.concatenate([np.full_like(work[..., :1], start), work[..., :-1]], -1)
        work = ufunc.accumulate(work, axis=-1, dtype=work.dtype)
        work = work[..., ::-1] if reverse else work
        return np.moveaxis(work, -1, axis).astype(x.dtype)

    def sample(draw: Draw) -> Sample:
        shape = draw.shape(1)
        attrs = {"axis": draw_axis(draw, len(shape)), "exclusive": draw.bool(0.3), "reverse": draw.bool(0.3)}
        return Sample((draw.tensor(draw.choice(NUMERIC), shape),), attrs)

    define(
        OpDef(
            name=name,
            doc=doc,
            operands=operands("x", x=NUMERIC),
            attrs={"axis": Attr("int"), "exclusive": Attr("bool", False), "reverse": Attr("bool", False)},
            infer=infer,
            reference=reference,
            sample=sample,
            flops=_input_flops,
            dim_links=lambda op: identity_links(op, without=[op.attrs["axis"]]),
        )
    )


_cumulative(
    "cumsum", np.add, 0, "Running sum along `axis`; exclusive leaves the element itself out, reverse runs back."
)
_cumulative("cumprod", np.multiply, 1, "Running product along `axis`, with the options of cumsum.")


# sort, topk ---------------------------------------------------------------------------------------


def _order(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Indices that sort stably along `axis`; NaN counts as larger than everything."""
    x = wide(x)
    if not descending:
        return np.argsort(x, axis, kind="stable")
    # Backwards through the stable ascending order of the flipped data: ties keep their order.
    order = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return x.shape[axis] - 1 - order


def _infer_sort(x: TensorType, *, axis: int, descending: bool) -> tuple[TensorType, TensorType]:
    check_axis(axis, x.rank)
    return x, x.with_dtype(DType.I64)


def _sort(x: np.ndarray, *, axis: int, descending: bool) -> tuple[np.ndarray, np.ndarray]:
    order = _order(x, axis, descending)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


def _sample_sort(draw: Draw) -> Sample:
    shape = draw.shape(1)
    array = draw.tensor(draw.choice(NUMERIC), shape)
    if draw.bool(0.3):
        array = np.round(wide(array)).astype(array.dtype)
    return Sample((array,), {"axis": draw_axis(draw, len(shape)), "descending": draw.bool()})


def _sort_flops(op: Op) -> int:
    x = op.operands[0]
    return x.type.numel * max(1, x.shape[op.attrs["axis"]].bit_length())


define(
    OpDef(
        name="sort",
        doc="(values, i64 indices) sorted stably along `axis`; NaN counts as the largest.",
        operands=operands("x", x=NUMERIC),
        attrs={"axis": Attr("int"), "descending": Attr("bool", False)},
        infer=_infer_sort,
        reference=_sort,
        sample=_sample_sort,
        flops=_sort_flops,
        dim_links=lambda op: identity_links(op, without=[op.attrs["axis"]], results=2),
    )
)


def _infer_topk(x: TensorType, *, k: int, axis: int, largest: bool) -> tuple[TensorType, TensorType]:
    check_axis(axis, x.rank)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k = {k} is not in 0..{x.shape[axis]}, the size of dimension {axis}")
    values = x.with_shape([k if dim == axis else size for dim, size in enumerate(x.shape)])
    return values, values.with_dtype(DType.I64)


def _topk(x: np.ndarray, *, k: int, axis: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    order = np.take(_order(x, axis, largest), range(k), axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


def _sample_topk(draw: Draw) -> Sample:
    drawn = _sample_sort(draw)
    axis = drawn.attrs["axis"]
    k = draw.int(0, drawn.operands[0].shape[axis])
    return Sample(drawn.operands, {"k": k, "axis": axis, "largest": draw.bool()})


define(
    OpDef(
        name="topk",
        doc="(values, i64 indices) of the k largest or smallest along `axis`, best first, ties by lower index; "
        "NaN counts as the largest.",
        operands=operands("x", x=NUMERIC),
        attrs={"k": Attr("int"), "axis": Attr("int"), "largest": Attr("bool", True)},
        infer=_infer_topk,
        reference=_topk,
        sample=_sample_topk,
        flops=_sort_flops,
        dim_links=lambda op: identity_links(op, without=[op.attrs["axis"]], results=2),
    )
)
