"""What the fuzz tests share: arguments that fit, the same spoiled, and what must hold of them.

An array is spoiled by an axis dropped, added, swapped, emptied or off by one, or another dtype.
What a function accepts must equal a plain formula in float64 of numpy. Examples are the same in
each run, and of few mixes of sizes, dtypes and options, since each is a program to compile;
``--hypothesis-seed=random`` and ``JAXNETS_FUZZ=1000`` look for new ones.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from tests.inputs import on_device

EXAMPLES = int(os.environ.get("JAXNETS_FUZZ", "15"))
SEARCHING = "JAXNETS_FUZZ" in os.environ
FLOATS = ("float32", "bfloat16", "float16")
MIXES = 3
_mix = 0  # that is tried


@st.composite
def mixed(draw, most=(), **choices):
    """``sizes`` up to ``most``, and one of each of the choices, by name.

    The sizes are all the least, all between, or all the most. When searching it is any sizes and
    choices; else those of the mix that is tried, and in as many mixes as a choice has each comes.
    """
    if SEARCHING:
        sizes = tuple(draw(st.integers(1, n)) for n in most)
        return {"sizes": sizes, **{name: draw(st.sampled_from(of)) for name, of in choices.items()}}
    sizes = [tuple(1 for _ in most), tuple(n // 2 + 1 for n in most), tuple(most)]
    every = {"sizes": sizes, **choices}
    return {name: of[(_mix + n) % len(of)] for n, (name, of) in enumerate(every.items())}


def fuzzed(strategy, examples=EXAMPLES, mixes=MIXES):
    """A test of examples of a strategy, of which the first of each mix is not spoiled."""

    def decorate(test):
        checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

        def run():
            global _mix
            for _mix in range(1 if SEARCHING else mixes):
                limits = settings(
                    max_examples=examples if SEARCHING else -(-examples // mixes),
                    deadline=None, suppress_health_check=checks, database=None,
                )  # fmt: skip
                tried = limits(given(strategy)(test))
                (tried if SEARCHING else seed(_mix)(tried))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def array(draw, *shape, dtype="float32", seed=0):
    """Numbers in [-1, 1] that bfloat16 has exactly."""
    generator = np.random.default_rng(seed + draw(st.integers(0, 3)))
    return on_device((generator.integers(-8, 9, shape) / 8).astype(jnp.dtype(dtype)))


@st.composite
def spoiled(draw, arguments):
    """The arguments of a strategy, as they are or with one array changed."""
    given_arguments = dict(draw(arguments))
    arrays = [name for name, value in given_arguments.items() if isinstance(value, jax.Array)]
    how = draw(
        st.sampled_from(["nothing"] * 2 + ["drop", "add", "swap", "empty", "longer", "dtype"])
    )
    name = draw(st.sampled_from(arrays))
    value = given_arguments[name]
    axis = draw(st.integers(0, max(value.ndim - 1, 0)))
    if how == "dtype":
        integers = jnp.issubdtype(value.dtype, jnp.integer)
        given_arguments[name] = on_device(np.asarray(value, np.float32 if integers else np.int32))
    elif how == "add":
        given_arguments[name] = on_device(np.asarray(value)[None])
    elif how != "nothing":
        assume(value.ndim)
        plain = np.asarray(value)  # NumPy compiles nothing
        changed = {
            "drop": lambda: plain.take(0, axis) if plain.shape[axis] else plain,
            "swap": lambda: plain.swapaxes(axis, -1),
            "empty": lambda: plain.take(np.zeros(0, int), axis),
            "longer": lambda: np.concatenate([plain, plain[:1]]) if axis == 0 else plain.T,
        }
        given_arguments[name] = on_device(changed[how]())
    return given_arguments


def outcome(function, arguments):
    """The result, or the message of a ``TypeError`` or ``ValueError``; anything else is a bug."""
    try:
        return function(**arguments), None
    except (TypeError, ValueError) as error:
        return None, str(error)


def holds(function, plain, arguments, depth):
    """``function`` equals ``plain``, or says what is wrong with which argument."""
    got, message = outcome(function, arguments)
    if message is not None:
        assert any(name in message for name in arguments), f"no argument is named: {message}"
        return
    with np.errstate(over="ignore"):
        wanted = plain(**{
            name: np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else np.int64)
            if isinstance(a, jax.Array) else a
            for name, a in arguments.items()
        })  # fmt: skip
    coarsest = max(
        float(jnp.finfo(a.dtype).eps)
        for a in jax.tree.leaves(arguments)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.floating)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        tolerance = 16 * coarsest * (depth + 1) * max(1.0, np.abs(b[np.isfinite(b)]).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def log_sum_exp(logits):
    top = logits.max(-1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0]


@st.composite
def projections(draw):
    mix = draw(
        mixed(
            (9, 7, 40), batch=((), (2,), None), dtype=FLOATS, bias=(False, True),
            label_smoothing=(0.0, 0.1), soft_cap=(3.0, None, 3.0), z_loss=(0.01, 0.0),
        )
    )  # fmt: skip
    tokens, features, vocab_size = mix["sizes"]
    batch = () if mix["batch"] is None else (tokens, *mix["batch"])
    return {
        "hidden": array(draw, *batch, features, dtype=mix["dtype"]),
        "weight": array(draw, vocab_size, features, dtype=mix["dtype"], seed=10),
        "bias": array(draw, vocab_size, seed=20) if mix["bias"] else None,
        "labels": on_device(np.random.default_rng(tokens).integers(0, vocab_size, batch)),
        **{name: mix[name] for name in ("label_smoothing", "soft_cap", "z_loss")},
    }


def plain_full(hidden, weight, bias, labels, label_smoothing, soft_cap, z_loss):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    z = log_sum_exp(logits)
    label = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return z - (1 - label_smoothing) * label - label_smoothing * logits.mean(-1) + z_loss * z**2


@st.composite
def tables(draw):
    mix = draw(mixed((30, 4), shape=((5,), (2, 3), ())))
    (vocab_size, features), shape = mix["sizes"], mix["shape"]
    return {
        "tables": array(draw, vocab_size, features),
        "ids": on_device(np.random.default_rng(vocab_size).integers(0, vocab_size, shape)),
    }
