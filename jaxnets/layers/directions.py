"""What LSTM and GRU modules share: parameters by layer and direction, and one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import (
    GRUParameters,
    LayerNorm,
    LSTMParameters,
    Recurrence,
    recurrent_layers,
)
from jaxnets.kernels.recurrent.checks import check_gru, check_lstm
from jaxnets.kernels.recurrent.layers import MergeMode
from jaxnets.layers.initial import as_computed, computing_dtype
from jaxnets.layers.other_libraries import FromAndTo

MERGE_MODES = get_args(MergeMode)
Module = TypeVar("Module", bound="Recurrent")


class Direction(nnx.Module):
    """The parameters of one layer and one direction, by the names of their tuple."""

    def __init__(self, parameters: LSTMParameters | GRUParameters):
        self.kind = type(parameters)
        norm = getattr(parameters, "layer_norm", None)
        self.layer_norm = None if norm is None else nnx.Dict(_params(norm))
        for name, param in _params(parameters).items():
            if name != "layer_norm":
                setattr(self, name, param)

    def parameters(self) -> LSTMParameters | GRUParameters:
        """The tuple that the kernels take."""
        fields = {
            name: getattr(self, name)[...]
            for name in self.kind._fields
            if name != "layer_norm" and getattr(self, name, None) is not None
        }
        if self.layer_norm is not None:
            fields["layer_norm"] = LayerNorm(**{n: p[...] for n, p in self.layer_norm.items()})
        return self.kind(**fields)


def _params(fields) -> dict[str, nnx.Param]:
    return {
        name: nnx.Param(array)
        for name, array in fields._asdict().items()
        if array is not None and not isinstance(array, LayerNorm)
    }


class Recurrent(FromAndTo, nnx.Module):
    """What LSTM and GRU share: layers of directions, and one call of ``recurrent_layers``."""

    cell_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, layers: Sequence[Sequence[LSTMParameters | GRUParameters]], merge_mode: MergeMode,
        dropout: float, input_dropout: float, recurrent_dropout: float,
        dtype: DTypeLike | None, rngs: nnx.Rngs | None,
    ):  # fmt: skip
        shares = {
            "dropout": dropout,
            "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout,
        }
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {share}")
        self.in_features = layers[0][0].input_kernel.shape[0]
        self.dtype = computing_dtype(dtype)
        self.layers = nnx.List(
            [nnx.List([Direction(direction) for direction in layer]) for layer in layers]
        )
        self.merge_mode: MergeMode = merge_mode
        self.dropout, self.input_dropout = dropout, input_dropout
        self.recurrent_dropout = recurrent_dropout
        self.deterministic = False
        drops = any(shares.values())
        if drops and rngs is None:
            raise ValueError(f"rngs must be given with dropout, got None and {shares}")
        self.rngs = nnx.data(rngs.dropout.fork() if drops and rngs is not None else None)

    @classmethod
    def from_parameters(
        cls: type[Module],
        layers: Sequence[Sequence[Any]],
        *,
        merge_mode: MergeMode = "concat",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs | None = None,
        **cell: Any,
    ) -> Module:
        """A module that holds ``layers``, of which it makes copies.

        Args:
          layers: as :meth:`parameters` gives them and :func:`jaxnets.kernels.recurrent_layers`
            takes them: for each layer one tuple a direction.
          merge_mode, dropout, input_dropout, recurrent_dropout, dtype: as in the class.
          rngs: needed with dropout.
          cell: ``reset_after`` of a GRU.

        Raises:
          TypeError: other tuples than the module's, or an unknown option.
          ValueError: arrays that do not fit together, or layers whose widths do not.

        Example:
          >>> from flax import nnx
          >>> from jaxnets.layers import LSTM
          >>> layer = LSTM(3, 8, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
          >>> same = LSTM.from_parameters(layer.parameters())
          >>> len(same.layers), same.in_features
          (2, 3)
        """
        for name in cell:
            if name not in cls.cell_defaults:
                raise TypeError(f"{cls.__name__} has no option {name!r} beside its parameters")
        _check_fit(cls.kind.parameters, layers, merge_mode)
        make: Any = cls  # by LSTM's or GRU's own arguments; abstract, so that nothing is drawn
        layer = nnx.eval_shape(lambda: make(1, 1, rngs=nnx.Rngs(0)))
        layers = jax.tree.map(jnp.array, [list(directions) for directions in layers])
        Recurrent.__init__(
            layer, layers, merge_mode, dropout, input_dropout, recurrent_dropout, dtype, rngs
        )
        for name, value in (cls.cell_defaults | cell).items():
            setattr(layer, name, value)
        return layer

    def parameters(self) -> list[list[Any]]:
        """The parameters as :func:`jaxnets.kernels.recurrent_layers` takes them."""
        return [[direction.parameters() for direction in layer] for layer in self.layers]

    def __call__(
        self,
        inputs: Float[ArrayLike, "..."],
        carries: Sequence[Sequence] | None = None,
        *,
        lengths: Integer[ArrayLike, "..."] | Sequence[int] | None = None,
        segment_ids: Integer[ArrayLike, "..."] | Sequence | None = None,
        mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
        deterministic: bool | None = None,
        **options,
    ) -> Recurrence:
        """:class:`jaxnets.kernels.Recurrence`: outputs, and each direction's last carry.

        Args:
          inputs: [batch, time, features]; [time, batch, features] with ``time_first=True``,
            [time, features] with ``batched=False``.
          carries: for each layer one a direction, as they are returned; None: zeros.
          lengths, segment_ids, mask: at most one of them; see :func:`jaxnets.kernels.lstm`.
          deterministic: no dropout; None: as ``train()`` and ``eval()`` have set it.
          options: the others of :func:`jaxnets.kernels.lstm`, as ``masked_outputs``,
            ``time_first``, ``batched`` or ``implementation``.

        Raises:
          TypeError, ValueError: as :func:`jaxnets.kernels.recurrent_layers`.
        """
        deterministic = self.deterministic if deterministic is None else deterministic
        drops: dict[str, Any] = {}
        if self.rngs is not None and not deterministic:
            drops = {
                "dropout": self.dropout,
                "input_dropout": self.input_dropout,
                "recurrent_dropout": self.recurrent_dropout,
                "key": self.rngs(),
            }
        inputs, parameters = as_computed(self.dtype, (inputs, self.parameters()))
        return recurrent_layers(
            inputs, carries, parameters, lengths=lengths, segment_ids=segment_ids,
            mask=mask, merge_mode=self.merge_mode, **self._cell_options(), **drops,
            **options,
        )  # fmt: skip

    def _cell_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.cell_defaults}


def _check_fit(kind: type[Any], layers: Sequence[Sequence[Any]], merge_mode: str) -> None:
    """Raise unless ``layers`` are of ``kind``, each takes what the one below gives."""
    check_merge_mode(merge_mode)
    width = None
    for number, directions in enumerate(layers):
        if len(directions) not in (1, 2):
            raise ValueError(f"layers must have one direction or two, got {len(directions)}")
        outputs = []
        for parameters in directions:
            if type(parameters) is not kind:
                raise TypeError(
                    f"layers must hold {kind.__name__}, got {type(parameters).__name__}"
                )
            features = parameters.input_kernel.shape[0]
            if width is not None and features != width:
                raise ValueError(
                    f"layers[{number}] must take the {width} features that layers[{number - 1}] "
                    f"gives with merge_mode={merge_mode!r}, got {features}"
                )
            is_lstm = isinstance(parameters, LSTMParameters)
            outputs.append(check_lstm(parameters)[1] if is_lstm else check_gru(parameters))
        width = sum(outputs) if merge_mode == "concat" else outputs[0]
    if not layers:
        raise ValueError("layers must hold one layer or more, got none")


def check_merge_mode(merge_mode: str) -> None:
    """Raise unless it is one of ``MERGE_MODES``."""
    if merge_mode not in MERGE_MODES:
        raise ValueError(f"merge_mode must be one of {MERGE_MODES}, got {merge_mode!r}")
