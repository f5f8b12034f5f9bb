"""What LSTM and GRU have in common with PyTorch's, Keras' and Flax': their weights, whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from jaxnets.convert import stacks
from jaxnets.kernels.recurrent.layers import MergeMode

Layer = TypeVar("Layer", bound="FromAndTo")


class FromAndTo:
    """The classmethods that make a module of other libraries' weights, and the way back.

    Weights only: nothing else of a model comes along but what is said here. ``batch_first`` of
    PyTorch and ``time_major`` of Flax are ``time_first=`` of the call, dropout is an option of
    these classmethods.
    """

    kind: ClassVar[stacks.Kind]
    merge_mode: MergeMode

    @classmethod
    def from_parameters(cls: type[Layer], layers: Sequence[Sequence[Any]], **options: Any) -> Layer:
        """A module that holds ``layers``, as ``parameters()`` gives them."""
        raise NotImplementedError

    def parameters(self) -> list[list[Any]]:
        """For each layer, one tuple a direction."""
        raise NotImplementedError

    def _cell_options(self) -> dict[str, Any]:
        """What the cell is beside its parameters."""
        raise NotImplementedError

    @classmethod
    def from_torch(
        cls: type[Layer], source: Any, *, prefix: str | None = None, **options: Any
    ) -> Layer:
        """Of an ``nn.LSTM`` or ``nn.GRU``, or one of their cells: all layers and directions.

        An LSTM's two biases are summed; ``proj_size`` and ``bias=False`` come as they are, and so
        does bfloat16. ``batch_first`` is not a matter of weights: inputs are [batch, time,
        features] here unless ``time_first=True`` is said. Nor is ``dropout``.

        Args:
          source: the module, its ``state_dict()``, or a larger model's, of tensors or arrays.
          prefix: of the module in a larger model, as "encoder.lstm"; None: the only there is.
          options: ``dropout``, ``input_dropout``, ``recurrent_dropout``, ``dtype`` and ``rngs`` of
            the class; ``rngs`` is needed for dropout only.

        Raises:
          TypeError: weights that are not floating point.
          ValueError: names that are not there or stand for several modules, shapes that are not
            of such a module, an option out of its range.

        Example:
          >>> import jax.numpy as jnp
          >>> import numpy as np
          >>> from jaxnets.layers import LSTM
          >>> inputs, hidden = np.ones((32, 3)), np.ones((32, 8))
          >>> state = {  # torch.nn.LSTM(3, 8, bidirectional=True, bias=False).state_dict()
          ...     "weight_ih_l0": inputs, "weight_hh_l0": hidden,
          ...     "weight_ih_l0_reverse": inputs, "weight_hh_l0_reverse": hidden,
          ... }
          >>> layer = LSTM.from_torch(state)
          >>> outputs, carries = layer(jnp.ones((2, 5, 3)))
          >>> outputs.shape, sorted(layer.to_torch(use_bias=False)) == sorted(state)
          ((2, 5, 16), True)
        """
        return cls.from_parameters(stacks.from_torch(cls.kind, source, prefix), **options)

    def to_torch(
        self, *, prefix: str | None = None, use_bias: bool = True
    ) -> dict[str, np.ndarray]:
        """The state dict of the same module of PyTorch's, for ``load_state_dict``.

        ``{name: torch.from_numpy(array) for name, array in ...items()}``; bfloat16 goes as
        ``torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)``.

        Args:
          prefix: of the module in a larger model, as "encoder.lstm".
          use_bias: False: of a module with ``bias=False``.

        Returns:
          NumPy's arrays by PyTorch's names. An LSTM's bias is in ``bias_ih``, ``bias_hh`` is 0.

        Raises:
          ValueError: peepholes, layer normalization, ``reset_after=False``, or ``merge_mode``
            other than "concat" in both directions, which PyTorch does not have; ``use_bias=False``
            where a bias is not 0.
        """
        layers = self.parameters()
        self._check_reset("PyTorch")
        if len(layers[0]) > 1 and self.merge_mode != "concat":
            raise ValueError(f"merge_mode must be 'concat' for PyTorch, got {self.merge_mode!r}")
        return stacks.to_torch(self.kind, layers, prefix, use_bias=use_bias)

    @classmethod
    def from_keras(
        cls: type[Layer], source: Any, *, activation: str = "tanh",
        recurrent_activation: str = "sigmoid", **options: Any,
    ) -> Layer:  # fmt: skip
        """Of a Keras ``LSTM`` or ``GRU``, a ``Bidirectional`` of one, or several of these.

        Args:
          source: a layer; or its ``get_weights()``, of a ``Bidirectional`` all of them; or a list
            of layers or such weights, from the input's on.
          activation, recurrent_activation: what ``get_config()`` says of them, where weights are
            given, which do not tell; layers are asked.
          options: ``merge_mode`` and, of a GRU, ``reset_after``, where weights are given;
            ``dropout``, ``input_dropout``, ``recurrent_dropout``, ``dtype`` and ``rngs`` of the
            class. Keras' own dropout and ``mask_zero`` do not come along.

        Raises:
          TypeError: weights that are not floating point.
          ValueError: another layer, other activations than tanh and sigmoid, ``go_backwards``, a
            ``Bidirectional`` that does not merge, layers that differ in ``merge_mode`` or
            ``reset_after``, or shapes that are not of such layers.

        Example:
          >>> import numpy as np
          >>> from jaxnets.layers import GRU
          >>> half = [np.ones((3, 24)), np.ones((8, 24)), np.ones((2, 24))]
          >>> layer = GRU.from_keras(half + half, merge_mode="sum")  # of a Bidirectional
          >>> layer(np.ones((2, 5, 3), np.float32))[0].shape
          (2, 5, 8)
          >>> [array.shape for array in layer.to_keras()[0][:3]]
          [(3, 24), (8, 24), (2, 24)]
        """
        layers, said = stacks.from_keras(
            cls.kind, source, options, activation=activation,
            recurrent_activation=recurrent_activation,
        )  # fmt: skip
        return cls.from_parameters(layers, **said)

    def to_keras(self, *, use_bias: bool = True) -> list[list[np.ndarray]]:
        """For each layer the argument of ``set_weights`` of Keras' layer, or ``Bidirectional``.

        Args:
          use_bias: False: of layers with ``use_bias=False``.

        Raises:
          ValueError: a projection, peepholes or layer normalization, which Keras does not have;
            ``use_bias=False`` where a bias is not 0.
        """
        options = self._cell_options()
        return stacks.to_keras(self.kind, self.parameters(), use_bias=use_bias, **options)

    @classmethod
    def from_flax(cls: type[Layer], source: Any, **options: Any) -> Layer:
        """Of Flax' cells, ``RNN`` and ``Bidirectional``, of nnx or linen, or several of these.

        Args:
          source: a module of nnx, its state, or the ``params`` of linen's module; or a list of
            these, from the input's on. linen names a cell by its class where the model makes it:
            ``params["GRUCell_0"]``.
          options: ``merge_mode``, which only an nnx ``Bidirectional`` tells; ``dropout``,
            ``input_dropout``, ``recurrent_dropout``, ``dtype`` and ``rngs`` of the class.

        Raises:
          TypeError: weights that are not floating point, a module of linen.
          ValueError: other names or shapes, other activations than Flax' own, an ``RNN`` with
            ``reverse=True``, or a ``merge_fn`` of the user's own without ``merge_mode``.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> from jaxnets.layers import LSTM
          >>> rnns = [nnx.RNN(nnx.OptimizedLSTMCell(3, 8, rngs=nnx.Rngs(n))) for n in range(2)]
          >>> layer = LSTM.from_flax(nnx.Bidirectional(*rnns))
          >>> layer(jnp.ones((2, 5, 3)))[0].shape
          (2, 5, 16)
          >>> nnx.update(nnx.Bidirectional(*rnns), layer.to_flax("nnx")[0])
        """
        layers, said = stacks.from_flax(cls.kind, source, options)
        return cls.from_parameters(layers, **said)

    def to_flax(self, style: str = "linen") -> list[dict[str, Any]]:
        """For each layer the parameters of an ``RNN``, or of a ``Bidirectional`` of two.

        Args:
          style: "linen": its ``LSTMCell``, ``OptimizedLSTMCell`` or ``GRUCell``, the ``params`` of
            the module; "nnx": ``OptimizedLSTMCell`` or ``GRUCell``, for ``nnx.update``.

        Raises:
          ValueError: a projection, peepholes, layer normalization or ``reset_after=False``, which
            Flax does not have, a recurrent bias of n for nnx' ``GRUCell``, or another style.
        """
        self._check_reset("Flax")
        return stacks.to_flax(self.kind, self.parameters(), style)

    def _check_reset(self, library: str) -> None:
        if not self._cell_options().get("reset_after", True):
            raise ValueError(f"reset_after must be True for {library}, got False")
