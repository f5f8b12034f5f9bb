"""Which implementations of the recurrent layers there are, and what stands in their way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxnets.kernels import dispatch
from jaxnets.kernels.recurrent import pallas_gpu, pallas_tpu
from jaxnets.kernels.recurrent.pallas import padded_hidden


def extras_of(parameters: Any, **options: bool) -> tuple[str, ...]:
    """What a call uses beyond the plain layer, by name; ``options`` say which of them it uses.

    ``lengths`` and ``reverse`` are no extras: all implementations have them.
    """
    parts = ("projection", "peepholes", "layer_norm")
    used = {name: getattr(parameters, name, None) is not None for name in parts} | options
    return tuple(name for name, is_used in used.items() if is_used)


def _lacks(sizes: Mapping[str, Any], *supported: str) -> str | None:
    lacking = [extra for extra in sizes["extras"] if extra not in supported]
    return f"it has no {', '.join(lacking)}" if lacking else None


def _reference_obstacle(
    _where: dispatch.Target, _dtype: Any, sizes: Mapping[str, Any]
) -> str | None:
    if {"remat", "chunk_size"} & set(sizes["extras"]):
        return "it is one plain loop: no remat, no chunk_size"
    return None


def _pallas_obstacle(where: dispatch.Target, dtype: Any, sizes: Mapping[str, Any]) -> str | None:
    obstacle = dispatch.pallas_obstacle(where, dtype)
    obstacle = obstacle or _lacks(sizes, "segment_ids", "recurrent_dropout")
    if obstacle:
        return obstacle
    hidden, itemsize = sizes["hidden"], jnp.dtype(dtype).itemsize
    padded = padded_hidden(where.platform, hidden)
    if where.platform == "tpu":
        needed, limit = pallas_tpu.vmem_bytes(padded, itemsize), pallas_tpu.vmem_limit()
        if needed > limit:
            return (
                f"hidden = {hidden} needs about {needed / 2**20:.0f} MiB of VMEM, of {limit >> 20}"
            )
        return None
    largest = pallas_gpu.LARGEST_HIDDEN[itemsize]
    if padded > largest:
        return (
            f"hidden must be at most {largest} in {jnp.dtype(dtype).name} for the recurrent kernel "
            f"to fit a multiprocessor, got {hidden}"
        )
    return None


def _cudnn_obstacle(where: dispatch.Target, dtype: Any, sizes: Mapping[str, Any]) -> str | None:
    if where.platform != "gpu":
        return f"cuDNN needs an NVIDIA GPU, this is {where.platform}"
    if where.interpret:
        return "cuDNN cannot be interpreted"
    if dtype != jnp.float32:
        return f"jax.experimental.rnn takes float32, got {jnp.dtype(dtype).name}"
    return _lacks(sizes)


_SIZES = ("batch", "time", "features", "hidden", "extras")

LSTM = dispatch.register(
    dispatch.Operation(
        "lstm",
        _SIZES,
        {
            "scan": dispatch.anywhere,
            "reference": _reference_obstacle,
            "pallas": _pallas_obstacle,
            "cudnn": _cudnn_obstacle,
        },
        {"extras": ()},
        {"tpu": "pallas"},
    )
)
GRU = dispatch.register(
    dispatch.Operation(
        "gru",
        _SIZES,
        {"scan": dispatch.anywhere, "reference": _reference_obstacle},
        {"extras": ()},
    )
)
