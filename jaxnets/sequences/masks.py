"""Lengths and masks: the same number however the same examples are padded, bucketed or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int32, Integer, Num, Shaped

from jaxnets.kernels.checks import (
    as_floats,
    as_int,
    as_integers,
    as_sizes,
    check_range,
    in_range,
    is_known,
)


def length_mask(
    lengths: Integer[ArrayLike, "*batch"] | Sequence, time: SupportsIndex
) -> Bool[Array, "*batch time"]:
    """[..., time]: true for the steps within each length.

    Args:
      lengths: integers of any width, in [0, time].
      time: the padded length.

    Raises:
      TypeError: lengths that are not integers.
      ValueError: a length out of range. Under ``jit``, where values are not known, all steps are
        within one that is too long and none within a negative one.

    Example:
      >>> length_mask([2, 0], 3).tolist()
      [[True, True, False], [False, False, False]]
    """
    whole, time = as_integers("lengths", lengths), as_int("time", time, 0)
    check_range("lengths", whole, 0, time + 1, "[0, time]")
    steps = jax.lax.broadcasted_iota(jnp.int32, (*whole.shape, time), whole.ndim)
    return steps < whole[..., None]


def last_step(
    outputs: Float[ArrayLike, "..."], lengths: Integer[ArrayLike, "*batch"] | Sequence
) -> Float[Array, "..."]:
    """Each row's output at its own last step: ``outputs[i, lengths[i] - 1]``.

    What stands in ``outputs`` beyond has no effect and no gradient, NaN or not.

    Args:
      outputs: [..., time, ...], of which the first axes are those of ``lengths``.
      lengths: [...] integers of any width, in [0, time].

    Returns:
      ``outputs`` without the axis of time; zeros for a length of 0.

    Raises:
      TypeError: lengths that are not integers, outputs that are not floating point.
      ValueError: a length out of range; under ``jit``, where values are not known, its row is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = jnp.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
      >>> last_step(outputs, [2, 0]).tolist()
      [[2.0], [0.0]]
    """
    array, whole = as_floats("outputs", outputs), as_integers("lengths", lengths)
    axis = whole.ndim
    if array.ndim <= axis or array.shape[:axis] != whole.shape:
        raise ValueError(
            f"outputs must be [*batch, time, ...] for lengths [*batch], got {array.shape} and "
            f"{whole.shape}"
        )
    time = array.shape[axis]
    check_range("lengths", whole, 0, time + 1, "[0, time]")
    if not time:  # nothing to index
        array = jnp.zeros((*whole.shape, 1, *array.shape[axis + 1 :]), array.dtype)
    index = jnp.expand_dims(whole, range(axis, array.ndim))
    taken = jnp.take_along_axis(array, (index - 1).clip(0, array.shape[axis] - 1), axis)
    taken = jnp.where(index == 0, 0, taken)
    if not is_known(whole):
        # The root of -1 is NaN; a constant NaN alarms jax_debug_nans even where it is not used.
        fine = in_range(index, time + 1)
        taken *= jnp.sqrt(jnp.where(fine, 1.0, -1.0)).astype(array.dtype)
    return taken.squeeze(axis)


def conv_lengths(
    lengths: Integer[ArrayLike, "*batch"] | Sequence,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
) -> Int32[Array, "*batch"]:
    r"""The lengths after a convolution or pooling over time.

    .. math:: \lfloor (n + p - d (k - 1) - 1) / s \rfloor + 1

    for a length of n, kernel k, stride s, dilation d and p steps of padding in all; at least 0, and
    0 for a length of 0, which is a row without an example.

    Args:
      lengths: integers of any width, at least 0.
      kernel_size: steps of the kernel, a number or a tuple of one; so are ``stride`` and
        ``dilation``.
      padding: "SAME" (then the length is n / s, rounded up), "CAUSAL" (the same), "VALID", or the
        steps on each side: a number, or a pair of them.

    Raises:
      TypeError: lengths that are not integers, sizes that are not.
      ValueError: a negative length (under ``jit`` it stays as it is), a size below 1, or another
        padding.

    Example:
      >>> conv_lengths([100, 7, 0], 5, stride=2).tolist()
      [50, 4, 0]
      >>> conv_lengths([100, 7, 0], 5, stride=2, padding="VALID").tolist()
      [48, 2, 0]
    """
    whole = as_integers("lengths", lengths)
    check_range("lengths", whole, 0, 2**31, "[0, 2**31)")
    sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    kernel, step, spread = (as_sizes(name, size, 1)[0] for name, size in sizes.items())
    span = spread * (kernel - 1)  # steps between the first and the last that one output sees
    if not isinstance(padding, str):
        sides = padding[0] if isinstance(padding, list | tuple) and len(padding) == 1 else padding
        padded = sum(as_sizes("padding", sides, 2, 0))
    elif padding.upper() in ("SAME", "CAUSAL"):
        padded = span
    elif padding.upper() == "VALID":
        padded = 0
    else:
        raise ValueError(
            f'padding must be "SAME", "CAUSAL", "VALID", a number or a pair, got {padding!r}'
        )
    after = (whole - 1 + (padded - span)) // step + 1
    return jnp.where(whole > 0, after.clip(0), whole)


def masked_mean(
    values: Num[ArrayLike, "..."],
    mask: Shaped[ArrayLike, "..."] | Sequence,
    axis: Any = None,
) -> Num[Array, "..."]:
    """The mean of ``values`` where ``mask`` is not 0, by its weight; 0 where it is 0 throughout.

    A value that is masked has no effect and no gradient, NaN or not.

    Args:
      values: [...].
      mask: weights, or booleans, of the shape of ``values`` or of its first axes: [batch, time] for
        values [batch, time, features].
      axis: an axis or several of ``values`` to take the mean over; all by default.

    Returns:
      The mean, in at least float32.

    Raises:
      ValueError: a mask of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])))
      2.0
      >>> masked_mean(jnp.ones((2, 3, 4)), length_mask([2, 0], 3), axis=1).tolist()
      [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    array, weights = _of_one_shape(values, mask)
    wide = jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize >= 4
    dtype = array.dtype if wide else jnp.float32
    there = weights.astype(bool)
    weights = jnp.where(there, weights.astype(dtype), 0)
    total = weights.sum(axis)
    summed = (jnp.where(there, array.astype(dtype), 0) * weights).sum(axis)
    none = total == 0
    return jnp.where(none, 0, summed / jnp.where(none, 1, total))


def masked_max(
    values: Num[ArrayLike, "..."],
    mask: Shaped[ArrayLike, "..."] | Sequence,
    axis: Any = None,
) -> Num[Array, "..."]:
    """The largest of ``values`` where ``mask`` is not 0; 0 where it is 0 throughout.

    A value that is masked has no effect and no gradient, NaN or not. Equal largest values share the
    gradient.

    Args:
      values: [...].
      mask: weights, or booleans, as for :func:`masked_mean`.
      axis: an axis or several of ``values`` to take the largest over; all by default.

    Raises:
      ValueError: a mask of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> masked_max(jnp.array([[-1.0, 5.0], [2.0, 3.0]]), [[1, 0], [0, 0]], axis=1).tolist()
      [-1.0, 0.0]
    """
    array, weights = _of_one_shape(values, mask)
    there = weights.astype(bool)
    if not array.size:
        return jnp.zeros_like(there.any(axis), array.dtype)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    lowest = jnp.array(-jnp.inf if floating else jnp.iinfo(array.dtype).min, array.dtype)
    largest = jnp.where(there, array, lowest).max(axis)
    return jnp.where(there.any(axis), largest, jnp.zeros_like(largest))


def _of_one_shape(values, mask) -> tuple[Array, Array]:
    """Both as arrays, the mask with the axes that ``values`` has after it."""
    array, weights = jnp.asarray(values), jnp.asarray(mask)
    if weights.shape != array.shape[: weights.ndim]:
        raise ValueError(
            f"mask must have the shape of values, {array.shape}, or of its first axes, got "
            f"{weights.shape}"
        )
    weights = jnp.expand_dims(weights, range(weights.ndim, array.ndim))
    return array, jnp.broadcast_to(weights, array.shape)


def masked_accuracy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    mask: Shaped[ArrayLike, "*batch"] | Sequence,
) -> Float[Array, ""]:
    """The share of the labels that have the largest logit, where ``mask`` is not 0.

    Args:
      logits: [..., classes].
      labels: [...] integers of any width; one that is no class is wrong.
      mask: [...] weights, or booleans.

    Raises:
      TypeError: logits that are not floating point, labels that are not integers.
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[0.1, 0.9], [0.8, 0.2]])
      >>> float(masked_accuracy(logits, [1, 1], [True, True]))
      0.5
    """
    array, whole = as_floats("logits", logits), as_integers("labels", labels)
    if array.shape[:-1] != whole.shape:
        raise ValueError(f"labels must be {array.shape[:-1]} as the logits are, got {whole.shape}")
    right = array.argmax(-1).astype(jnp.int32) == whole
    return masked_mean(right.astype(jnp.float32), mask)
