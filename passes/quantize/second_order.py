"""Second-order rounding: the error of one weight is made good by the ones that are rounded after it."""

from __future__ import annotations

import numpy as np

from secateur.passes.quantize.forms import Form


def second_order(
    rows: np.ndarray,
    hessian: np.ndarray,
    scales: np.ndarray,
    form: Form,
    *,
    damp: float = 0.01,
    block: int = 128,
    act_order: bool = False,
) -> np.ndarray:
    """Integers i8 [O, K] for weights that err little in the product with their inputs.

    Frantar et al., "GPTQ", 2022: with H = 2 X X^T + lambda I, columns are rounded one after the other and
    each one's error is spread over those to its right by the Cholesky factor of the inverse of H. Rows for
    which this turns out no better than rounding to nearest keep the nearest.

    Args:
        rows: weights f32 [O, K].
        hessian: 2 X X^T over the inputs, f64 [K, K].
        scales: f32 [O, G] for G groups of K/G columns; they stay as they are.
        damp: lambda as a share of the mean diagonal.
        block: columns whose errors are gathered before they are spread over all the rest.
        act_order: columns of large diagonal first.
    """
    nearest = _round(rows.astype(np.float64), _columns(scales, rows.shape[1]), form)
    if not rows.size or not np.isfinite(hessian).all():
        return nearest.astype(np.int8)
    unused = np.diag(hessian) <= 0
    matrix = hessian.copy()
    matrix[unused, unused] = 1.0
    matrix[np.diag_indices_from(matrix)] += damp * np.mean(np.diag(matrix))
    order = np.argsort(-np.diag(matrix), kind="stable") if act_order else np.arange(rows.shape[1])
    factor = _inverse_factor(matrix[np.ix_(order, order)])
    if factor is None:
        return nearest.astype(np.int8)
    wide = _columns(scales, rows.shape[1])
    found = np.empty_like(nearest)
    found[:, order] = _sweep(rows.astype(np.float64)[:, order], factor, wide[:, order], form, block)
    better = _errors(found, rows, wide, hessian) < _errors(nearest, rows, wide, hessian)
    return np.where(better[:, None], found, nearest).astype(np.int8)


def _columns(scales: np.ndarray, columns: int) -> np.ndarray:
    """The scale of each weight, f64 [O, K]."""
    return np.repeat(scales.astype(np.float64), columns // scales.shape[1], axis=1)


def _round(x: np.ndarray, scales: np.ndarray, form: Form) -> np.ndarray:
    return np.clip(np.rint(x / scales), form.low, form.high)


def _inverse_factor(matrix: np.ndarray) -> np.ndarray | None:
    """The upper Cholesky factor of the inverse; None where the matrix is not positive definite in f64."""
    try:
        inverse = np.linalg.inv(matrix)
        return np.linalg.cholesky((inverse + inverse.T) / 2).T
    except np.linalg.LinAlgError:
        return None


def _sweep(rows: np.ndarray, factor: np.ndarray, scales: np.ndarray, form: Form, block: int) -> np.ndarray:
    work, found = rows.copy(), np.empty_like(rows)
    columns = rows.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((len(rows), stop - start))
        for column in range(start, stop):
            found[:, column] = _round(work[:, column], scales[:, column], form)
            off = (work[:, column] - found[:, column] * scales[:, column]) / factor[column, column]
            work[:, column:stop] -= np.outer(off, factor[column, column:stop])
            errors[:, column - start] = off
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return found


def _errors(integers: np.ndarray, rows: np.ndarray, scales: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The squared error of each output, f64 [O]: d H d^T of the difference of the weights."""
    off = integers * scales - rows
    return np.einsum("ok,ok->o", off @ hessian, off)
