"""Axes, the reset before the matmul, dropout of inputs, merging of directions, strict modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    GRUParameters,
    LayerNorm,
    compiling_for,
    gru,
    lstm,
    recurrent_layers,
)
from tests.kernels.recurrent.test_recurrent_padding import (
    HIDDEN,
    IDS,
    KINDS,
    MASK,
    normal,
    problem,
)
from tests.near import assert_near
from tests.recurrence import by_hand, curvature, curvature_by_hand, jitted, value_and_gradients


@pytest.mark.parametrize(("kind", "marks"), [("lstm", {"mask": MASK}), ("gru", {})])
def test_time_first(loops, kind, marks):
    inputs, carry, parameters = problem(kind)
    turned = {name: value.T for name, value in marks.items()}
    layer = jax.jit(functools.partial(KINDS[kind], time_first=True, **turned))
    outputs, end = layer(np.swapaxes(inputs, 0, 1), carry, parameters)
    wanted, _ = by_hand((inputs, carry, parameters), **marks)
    assert_near((np.swapaxes(outputs, 0, 1), end), wanted, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence(loops, kind):
    one = functools.partial(jax.tree.map, lambda a: a[1])
    inputs, carry, parameters = problem(kind)
    marks, lengths = {"mask": MASK}, {"lengths": np.arange(5)}

    @jax.jit
    def each(inputs, carry, parameters):
        layer = functools.partial(KINDS[kind], batched=False)
        plain = functools.partial(layer, implementation="reference")
        return (
            layer(inputs, carry, parameters, **one(marks)),
            plain(inputs, carry, parameters, **one(lengths)),
            plain(inputs, None, parameters, time_first=True),
        )

    zeros = jax.tree.map(np.zeros_like, carry)
    wanted = [
        one(by_hand((inputs, start, parameters), **given)[0])
        for start, given in ((carry, marks), (carry, lengths), (zeros, {}))
    ]
    assert_near(each(inputs[1], one(carry), parameters), wanted, 1e-6)


def test_reset_before_the_matmul(x64):
    """n = tanh(x W_n + b_n + (r h) U_n + d_n)."""
    arrays = problem("gru", dtype=jnp.float64)
    options = {"mask": MASK, "reverse": True, "reset_after": False}
    options |= {"truncate_steps": 3, "recurrent_dropout": 0.4, "key": jax.random.key(1)}
    wanted = by_hand(arrays, **options)
    for name, own in (("scan", {"remat": True}), ("reference", {})):
        assert_near(jitted(gru, implementation=name, **own, **options)(arrays), wanted, 1e-12)


def test_reset_before_the_matmul_by_hand(x64):
    inputs, h, (w, u, b, d) = problem("gru", batch=1, time=2, dtype=jnp.float64)
    got, last = gru(inputs, h, GRUParameters(w, u, b, d), reset_after=False)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    h, w, u, b, d = (np.asarray(array) for array in (h[0], w, u, b, d))
    (w_r, w_z, w_n), (u_r, u_z, u_n) = np.split(w, 3, 1), np.split(u, 3, 1)
    both = np.split(b + d, 3)
    for t, x in enumerate(np.asarray(inputs[0])):
        r, z = sigmoid(x @ w_r + h @ u_r + both[0]), sigmoid(x @ w_z + h @ u_z + both[1])
        n = np.tanh(x @ w_n + (r * h) @ u_n + both[2])
        h = (1 - z) * n + z * h
        np.testing.assert_allclose(got[0, t], h, atol=1e-14)
    np.testing.assert_allclose(last[0], h, atol=1e-14)


def test_all_derivatives_of_the_reset_before_the_matmul_within_segments(x64, loops):
    arrays = problem("gru", batch=3, time=5, dtype=jnp.float64)
    options = {"segment_ids": IDS[:3, 2:], "reset_after": False}
    layer = functools.partial(gru, remat=False, **options)
    found = jax.jit(lambda arrays: (value_and_gradients(layer, arrays), curvature(layer, arrays)))(
        arrays
    )
    wanted = by_hand(arrays, **options), curvature_by_hand(arrays, **options)
    assert_near(found, wanted, 1e-12)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"])
def test_merge_modes(merge_mode):
    _, _, parameters = problem("lstm")
    merges = {"sum": np.add, "mul": np.multiply, "ave": lambda a, b: (a + b) / 2,
              "concat": lambda a, b: np.concatenate([a, b], -1)}  # fmt: skip
    merge = merges[merge_mode]
    width = HIDDEN * (2 if merge_mode == "concat" else 1)  # of the inputs too: one program
    inputs = normal(6, 5, 7, width)
    parameters, other, upper = (
        parameters._replace(input_kernel=normal(seed, width, 4 * HIDDEN)) for seed in (7, 8, 9)
    )
    plain = {"mask": MASK, "implementation": "reference"}
    got, ends = recurrent_layers(
        inputs, None, [[parameters, other], [upper, upper]], merge_mode=merge_mode, **plain
    )
    between = merge(*(np.asarray(lstm(inputs, None, p, reverse=bool(r), **plain)[0])
                      for r, p in enumerate((parameters, other))))  # fmt: skip
    both = [lstm(between, None, upper, reverse=r, **plain) for r in (False, True)]
    assert_near(got, merge(*(np.asarray(outputs) for outputs, _ in both)), 1e-6)
    assert_near(ends[1], [both[0][1], both[1][1]], 1e-6)


def lstm_with(**parts):
    _, _, parameters = problem("lstm")
    return parameters._replace(**parts)


ONES = np.ones(4 * HIDDEN, np.float32)
NORM = LayerNorm(ONES, ONES, ONES[:HIDDEN], ONES[:HIDDEN])
LENGTHS = [7, 3, 0, 1, 5]
STRICT = {
    "lengths": ("lstm", lstm_with(projection=normal(9, HIDDEN, HIDDEN)),
                {"lengths": LENGTHS, "recurrent_dropout": 0.5, "key": jax.random.key(0),
                 "time_first": True}),
    "mask": ("lstm", lstm_with(peepholes=normal(9, 3, HIDDEN)),
             {"mask": MASK, "masked_outputs": "repeat", "remat": True, "chunk_size": 3}),
    "segments": ("lstm", lstm_with(layer_norm=NORM), {"segment_ids": IDS, "truncate_steps": 3}),
    "no padding": ("gru", problem("gru")[2], {"reverse": True}),
    "reset before": ("gru", problem("gru")[2],
                     {"lengths": LENGTHS, "reverse": True, "reset_after": False}),
    "reference": ("gru", problem("gru")[2],
                  {"segment_ids": IDS, "implementation": "reference", "truncate_steps": 2}),
    "pallas": ("lstm", problem("lstm")[2],
               {"lengths": LENGTHS, "implementation": "pallas", "reverse": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", STRICT)
def test_strict_modes(strict_modes, case):
    """Values and gradients are traced; every number of one case is looked at, with NaN as padding.

    That all are finite, with such padding too, is compared with the reference where values are.
    """
    kind, parameters, options = STRICT[case]
    inputs, carry, _ = problem(kind)
    arrays = np.asarray(inputs), carry, parameters
    layer = functools.partial(KINDS[kind], **options)
    interpret = options.get("implementation") == "pallas"
    with compiling_for("gpu" if interpret else "cpu", interpret=interpret):
        if case == "lengths":
            inside = np.arange(7) < np.array(LENGTHS)[:, None]
            dirty = np.where(inside[:, :, None], inputs, np.float32(np.nan)).swapaxes(0, 1)
            arrays = dirty, *arrays[1:]
            for leaf in jax.tree.leaves(layer(*arrays)):
                assert np.isfinite(leaf).all()
        jax.eval_shape(functools.partial(value_and_gradients, layer), arrays)


def test_strict_modes_of_layers(strict_modes, loops):
    inputs, _, parameters = problem("lstm")
    layers = [[parameters, parameters]]
    inputs = np.where(MASK[:, :, None], np.asarray(inputs), np.float32(np.nan))

    def loss(inputs, layers):
        return recurrent_layers(
            inputs, None, layers, mask=MASK, dropout=0.1, input_dropout=0.1, merge_mode="ave",
            recurrent_dropout=0.1, key=jax.random.key(0),
        )[0].sum()  # fmt: skip

    gradients = jax.jit(jax.grad(loss, (0, 1)))(inputs, layers)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_pallas_where_integers_are_64_bits_wide(x64, platform):
    """To the program that XLA compiles: types that do not go together are met before."""
    layer = functools.partial(lstm, segment_ids=jnp.asarray(IDS), implementation="pallas")
    with compiling_for(platform, interpret=True):
        assert jitted(layer).lower(problem("lstm")).as_text()
