import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from jaxnets import optim
from jaxnets.kernels import SparseRows
from jaxnets.optim import clip_by_norm
from jaxnets.training import fit

pytestmark = pytest.mark.usefixtures("cheap_parameters")

QUIET = Console(quiet=True)
# Of one flat vector: an update of each parameter is a kernel or more for each.
ADAM = optax.flatten(optax.adam(1e-2))


class Model(nnx.Module):
    """With batch statistics and dropout: state beside the parameters."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 1, rngs=rngs)])

    def __call__(self, inputs):
        return self.layers[0](self.dropout(nnx.relu(self.norm(self.first(inputs)))))


def batch_at(step):
    return jnp.asarray(np.random.default_rng(step).normal(size=(16, 4)).astype(np.float32))


def loss(model, batch, key):
    noise = 0.01 * jax.random.normal(key, (16, 1))
    return ((model(batch) - batch.sum(1, keepdims=True) + noise) ** 2).mean(), {}


def evaluate(model):
    batch = batch_at(10**6)
    return {"error": float(((model(batch) - batch.sum(1, keepdims=True)) ** 2).mean())}


def run(steps, **options):
    model = Model()
    options = {"optimizer": ADAM, "every": 10, "evaluate": evaluate} | options
    options = {"key": jax.random.key(0), "console": QUIET} | options
    return model, fit(model, loss, batch_at, steps, **options)


def leaves(model):
    state = nnx.to_pure_dict(nnx.state(model))
    keys_as_data = jax.tree.map(
        lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a,
        state,
    )
    return [np.array(leaf) for leaf in jax.tree.leaves(keys_as_data)]  # copies: a step takes all


def test_learns_in_place():
    before = evaluate_new()
    model, result = run(100)
    model.eval()
    assert evaluate(model)["error"] == pytest.approx(result.history[-1]["error"], rel=1e-6)
    assert result.history[-1]["error"] < before / 10
    assert [row["step"] for row in result.history] == list(range(10, 101, 10))


def evaluate_new():
    model = Model()
    model.eval()
    return evaluate(model)["error"]


@pytest.mark.parametrize("monitor", [None, pytest.param("error", marks=pytest.mark.smoke)])
def test_resumes_to_the_same_bits(tmp_path, monitor):
    options = {"monitor": monitor, "mode": "min", "clip_norm": 1.0}
    whole, expected = run(30, **options)
    run(20, folder=tmp_path, **options)
    resumed, result = run(30, folder=tmp_path, **options)
    assert result == expected
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_run_again(tmp_path):
    _, expected = run(20, folder=tmp_path)
    _, result = run(20, folder=tmp_path)
    assert result == expected


def test_stops_early_and_keeps_the_best():
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    seen = []

    def pretend(model):
        seen.append(leaves(model))
        return {"error": next(values)}

    model, result = run(100, evaluate=pretend, monitor="error", mode="min", patience=3)
    assert (result.step, result.best_step) == (50, 20)
    for a, b in zip(leaves(model), seen[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.smoke
def test_bfloat16_computes_in_it_and_keeps_float32():
    dtypes = []

    def watched(model, batch, key):
        dtypes.append((model.first.kernel.dtype, batch.dtype, model(batch).dtype))
        return loss(model, batch, key)

    model = Model()
    result = fit(
        model, watched, batch_at, 100, optimizer=ADAM, key=jax.random.key(0),
        evaluate=evaluate, compute_dtype=jnp.bfloat16, console=QUIET,
    )  # fmt: skip
    assert set(dtypes[0]) == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype(jnp.float32)
    }
    assert model.norm.mean[...].dtype == jnp.float32
    assert result.history[-1]["error"] < evaluate_new() / 10


@pytest.mark.smoke
def test_gradients_may_come_by_rows():
    """A table's Rows with lazy Adam, where each row is touched: the same as dense Adam."""

    class Table(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.ones((5, 3)))
            self.scale = nnx.Param(jnp.ones(3))

    def dense_loss(model, batch, key):
        return ((model.table[...] * model.scale[...] - batch) ** 2).mean(), {}

    def by_rows(model, batch, key):
        def value(table, scale):
            return ((table * scale - batch) ** 2).mean()

        arguments = model.table[...], model.scale[...]
        result, (table, scale) = jax.value_and_grad(value, (0, 1))(*arguments)
        return (result, {}), {"table": SparseRows(jnp.arange(5), table), "scale": scale}

    def batches(step):
        return np.random.default_rng(step).normal(size=(5, 3)).astype(np.float32)

    options = {"key": jax.random.key(0), "clip_norm": 0.1, "console": QUIET}
    dense, sparse = Table(), Table()
    fit(dense, dense_loss, batches, 20, optimizer=optax.adam(0.1), **options)
    optimizer = optim.partition(
        optim.lazy_adam(0.1), optax.adam(0.1), lambda path: path == ("table",)
    )
    fit(sparse, None, batches, 20, optimizer=optimizer, gradients=by_rows, **options)
    # Adam divides by the root of a sum, in another order here: a few roundings of 6e-8 a step.
    np.testing.assert_allclose(sparse.table[...], dense.table[...], atol=20 * 10 * 6e-8)
    np.testing.assert_allclose(sparse.scale[...], dense.scale[...], atol=20 * 10 * 6e-8)


def test_clip_by_norm():
    gradient = {"a": jnp.array([3.0]), "b": SparseRows(jnp.array([7]), jnp.array([[4.0]]))}
    clipped, norm = clip_by_norm(gradient, 1.0)
    assert float(norm) == 5
    assert clipped["b"].ids.tolist() == [7]
    np.testing.assert_allclose([clipped["a"][0], clipped["b"].values[0, 0]], [0.6, 0.8], rtol=1e-6)
    unchanged, _ = clip_by_norm(gradient, 6.0)
    assert float(unchanged["a"][0]) == 3


def test_a_loss_that_is_not_finite_is_an_error():
    model = Model()
    with pytest.raises(FloatingPointError, match="the loss is nan before step 10"):
        fit(
            model, lambda model, batch, key: (jnp.nan * model(batch).sum(), {}), batch_at, 20,
            optimizer=optax.sgd(0.1), key=jax.random.key(0), every=10, console=QUIET,
        )  # fmt: skip


def test_exactly_one_of_loss_and_gradients():
    options = {"optimizer": optax.sgd(0.1), "key": jax.random.key(0), "console": QUIET}
    with pytest.raises(ValueError, match="give either loss or gradients, got neither"):
        fit(Model(), None, batch_at, 1, **options)
    with pytest.raises(ValueError, match="give either loss or gradients, got both"):
        fit(Model(), loss, batch_at, 1, gradients=lambda *_: None, **options)


ERRORS = {
    "compute_dtype must be None or bfloat16": {"compute_dtype": jnp.float16},
    "mode must be": {"mode": "least"},
    "every must be at least 1": {"every": 0},
    "evaluate must be given to monitor": {"monitor": "error", "evaluate": None},
    "patience must be at least 1 and needs monitor": {"patience": 2},
    "monitor must be one of": {"monitor": "accuracy"},
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_options(message, users_checks):
    with pytest.raises(ValueError, match=message):
        run(10, **ERRORS[message])
