"""Last states of other libraries' recurrent layers as carries here, and back.

A carry here is ``(c, h)`` of an LSTM and ``h`` of a GRU, for each layer one a direction. Flax' are
the same pairs, and :func:`jaxnets.kernels.recurrent_layers` takes them as they are, in those lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnets.convert.arrays import as_array

Carries = list[list[Any]]


def carries_from_torch(states: Any, *, bidirectional: bool = False) -> Carries:
    """From PyTorch's ``(h_n, c_n)`` of an LSTM, or ``h_n`` of a GRU.

    Args:
      states: [layers * directions, batch, hidden] each, or without batch; h_n of an LSTM with
        ``proj_size`` is narrower. Tensors or arrays.
      bidirectional: two directions a layer, which stand beside each other.

    Returns:
      For each layer a list of one carry a direction: the ``carries`` of
      :func:`jaxnets.kernels.recurrent_layers` and of the modules.

    Raises:
      TypeError: states that are not floating point.
      ValueError: another number of arrays than two or one, or of states than the directions share.

    Example:
      >>> import numpy as np
      >>> h_n, c_n = np.ones((4, 2, 8)), np.zeros((4, 2, 8))  # of two layers
      >>> carries = carries_from_torch((h_n, c_n), bidirectional=True)
      >>> c, h = carries[1][0]
      >>> len(carries), len(carries[0]), c.shape, float(h[0, 0])
      (2, 2, (2, 8), 1.0)
    """
    is_pair = isinstance(states, tuple | list)
    arrays = [as_array("states", array) for array in (states if is_pair else [states])]
    if len(arrays) != 1 + is_pair:
        raise ValueError(
            f"states must be (h_n, c_n) of an LSTM or h_n of a GRU, got {len(arrays)} arrays"
        )
    directions = 2 if bidirectional else 1
    counts = {array.shape[:1] for array in arrays}
    if len(counts) > 1 or any(a.ndim < 2 or a.shape[0] % directions for a in arrays):
        raise ValueError(
            f"states must be [layers * {directions}, batch, hidden] each, got "
            f"{', '.join(str(array.shape) for array in arrays)}"
        )
    each = [tuple(reversed(pair)) if is_pair else pair[0] for pair in zip(*arrays, strict=True)]
    return [each[n : n + directions] for n in range(0, len(each), directions)]


def carries_to_torch(carries: Sequence[Sequence[Any]]) -> Any:
    """To PyTorch's ``(h_n, c_n)`` of an LSTM, or ``h_n`` of a GRU, by ``torch.from_numpy``.

    Args:
      carries: of each layer and direction, as a layer returns them.

    Example:
      >>> import jax.numpy as jnp
      >>> h_n, c_n = carries_to_torch([[(jnp.zeros((2, 8)), jnp.ones((2, 8)))]])
      >>> h_n.shape, float(h_n[0, 0, 0])
      ((1, 2, 8), 1.0)
    """
    each = [carry for layer in carries for carry in layer]
    if isinstance(each[0], tuple | list):
        return tuple(np.stack([np.asarray(carry[n]) for carry in each]) for n in (1, 0))
    return np.stack([np.asarray(carry) for carry in each])


def carries_from_keras(states: Sequence[Any], *, bidirectional: bool = False) -> list[Any]:
    """From what one Keras layer returns beside its outputs, or takes as ``initial_state``.

    Args:
      states: ``[h, c]`` of an LSTM, ``[h]`` of a GRU, [batch, hidden] each; of a ``Bidirectional``
        the forward layer's, then the backward layer's.
      bidirectional: they are of a ``Bidirectional``.

    Returns:
      One carry a direction: what :func:`jaxnets.kernels.recurrent_layers` takes for one layer.

    Raises:
      TypeError: states that are not floating point.
      ValueError: another number of states.

    Example:
      >>> import numpy as np
      >>> h, c = np.ones((2, 8)), np.zeros((2, 8))
      >>> [[(c, h)]] = [carries_from_keras([h, c])]
      >>> float(h[0, 0])
      1.0
    """
    arrays: list[jax.Array] = [as_array("states", array) for array in states]
    directions = 2 if bidirectional else 1
    if len(arrays) not in (directions, 2 * directions):
        raise ValueError(
            f"states must be h and c of an LSTM or h of a GRU, of {directions} direction"
            f"{'s' * bidirectional}, got {len(arrays)} arrays"
        )
    if len(arrays) == directions:
        return arrays
    return [(c, h) for h, c in zip(arrays[::2], arrays[1::2], strict=True)]


def carries_to_keras(carries: Sequence[Any]) -> list[np.ndarray]:
    """To the ``initial_state`` of one Keras layer.

    Args:
      carries: of the layer's directions, one or two.

    Example:
      >>> import jax.numpy as jnp
      >>> h, c = carries_to_keras([(jnp.zeros((2, 8)), jnp.ones((2, 8)))])
      >>> float(h[0, 0]), float(c[0, 0])
      (1.0, 0.0)
    """
    states: list[np.ndarray] = []
    for carry in carries:
        parts = reversed(carry) if isinstance(carry, tuple | list) else [carry]
        states += [np.asarray(part) for part in parts]
    return states
