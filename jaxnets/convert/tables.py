"""Embeddings and output layers of other libraries: a table, and of an output layer a bias."""

from __future__ import annotations

from typing import Any

import jax

from jaxnets.convert.arrays import as_array, check_matrix, check_shape
from jaxnets.convert.torch import named_arrays


def table_from_torch(source: Any, prefix: str | None) -> tuple[jax.Array, jax.Array | None]:
    """``weight`` [vocab, features] and ``bias`` of a module, or of the one ``prefix`` names."""
    named = named_arrays(source.state_dict() if hasattr(source, "state_dict") else source)
    starts = [name.removesuffix("weight") for name in named if name.split(".")[-1] == "weight"]
    if prefix is not None:
        starts = [start for start in starts if start.removesuffix(".") == prefix.removesuffix(".")]
    if len(starts) != 1:
        raise ValueError(
            f"state must hold one weight{f' of {prefix!r}' if prefix else ''}, or prefix name its "
            f"module, got {', '.join(list(named)[:8])}"
        )
    name, bias_name = f"{starts[0]}weight", f"{starts[0]}bias"
    weight = as_array(name, named[name])
    check_matrix(name, weight, "[vocab, features]")
    if bias_name not in named:
        return weight, None
    bias = as_array(bias_name, named[bias_name])
    check_shape(bias_name, bias, "[vocab]", weight.shape[:1])
    return weight, bias


def embeddings_from_keras(source: Any) -> jax.Array:
    """[vocab, features] of an ``Embedding``, or of its list of one array."""
    (table,) = _weights("Embedding", source, "[embeddings]", 1)
    return table


def dense_from_keras(source: Any) -> tuple[jax.Array, jax.Array | None]:
    """Kernel [features, vocab] and bias of a ``Dense``, or of its list of one or two arrays.

    Its softmax is the loss's, so a layer may have that, or no activation.
    """
    if hasattr(source, "get_config"):
        activation = source.get_config().get("activation", "linear")
        if activation not in ("linear", "softmax"):
            raise ValueError(f"activation must be 'linear' or 'softmax', got {activation!r}")
    kernel, *bias = _weights("Dense", source, "[kernel, bias], or without the bias", 2)
    if not bias:
        return kernel, None
    check_shape("weights[1]", bias[0], "[vocab]", kernel.shape[1:])
    return kernel, bias[0]


def _weights(kind: str, source: Any, words: str, most: int) -> list[jax.Array]:
    if hasattr(source, "get_weights"):
        if type(source).__name__ != kind:
            raise ValueError(f"source must be a Keras {kind}, got {type(source).__name__}")
        source = source.get_weights()
    arrays = [as_array(f"weights[{n}]", array) for n, array in enumerate(source)]
    if not 1 <= len(arrays) <= most:
        raise ValueError(f"source must hold {words}, as {kind} does, got {len(arrays)} arrays")
    check_matrix("weights[0]", arrays[0], "[in, out]")
    return arrays
