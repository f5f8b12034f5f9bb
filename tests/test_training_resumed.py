"""Runs that go on: from folders, on devices, in strict modes."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets import optim, rows
from tests.small_run import Model, after, kernel, run, scores

pytestmark = pytest.mark.usefixtures("cheap_parameters")

OTHERS = {
    r"another model: parameters/first/bias is float32 of shape \(8,\) there, and "
    r"float32 of shape \(9,\) here": lambda: {"model": Model(9)},
    "another optimizer: optimizer/0/count is nothing there, and int32": lambda: {
        "optimizer": optax.adam(0.1)
    },
    "another optimizer: optimizer/0/trace/first/bias is float32": lambda: {
        "optimizer": optax.sgd(0.1)
    },
    "monitor must be 'score' as in step 20 .* got None": lambda: {"monitor": None},
    "monitor must be 'score' as in step 20 .* got 'other'": lambda: {"monitor": "other"},
    "mode must be 'max' as in step 20 .* got 'min'": lambda: {"mode": "min"},
    "steps must be at least 20, which the run in the folder .* has done, got 15": lambda: {
        "steps": 15
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run(20, folder=folder, **scores())
    return folder


@pytest.mark.parametrize("message", OTHERS)
def test_another_run_in_the_folder(message, saved):
    with pytest.raises(ValueError, match=message) as caught:
        run(**({"steps": 40, "folder": saved} | scores() | OTHERS[message]()))
    assert caught.value.__cause__ is None
    _, result = run(20, folder=saved, **scores())  # left as it was, and not locked
    assert result.step == 20


def test_monitor_added(tmp_path):
    run(10, folder=tmp_path)
    with pytest.raises(ValueError, match=r"monitor must be None as in step 10 .* got 'score'"):
        run(20, folder=tmp_path, **scores())


def test_goes_on_from_the_newest_step_that_reads(tmp_path):
    run(30, folder=tmp_path, **scores())
    (tmp_path / "30/run/metadata").write_bytes(b'{"history": ')
    (tmp_path / "40").mkdir()
    model = Model()
    with pytest.warns(UserWarning, match="is damaged") as seen:
        _, result = run(50, model=model, folder=tmp_path, **scores())
    assert [str(w.message)[:7] for w in seen] == ["step 40", "step 30"]
    whole, expected = run(50, **scores())
    assert result == expected
    np.testing.assert_array_equal(kernel(model), kernel(whole))


def test_a_folder_for_one_run(tmp_path):
    def nested(model):
        run(10, folder=tmp_path)

    with pytest.raises(RuntimeError, match="another run, of this process, is using the folder"):
        run(10, folder=tmp_path, evaluate=nested)


class Wide(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(inputs)))))


def on_mesh(kind, devices):
    """A model on a mesh, and its batches."""
    mesh = jax.make_mesh(
        (devices,), ("d",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )

    def put(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    model = Wide()
    for linear in (model.first, model.last):
        if kind == "split":
            linear.kernel[...] = put(linear.kernel[...], P("d", None))
        elif kind == "replicated":
            linear.kernel[...], linear.bias[...] = (
                put(linear.kernel[...], P()),
                put(linear.bias[...], P()),
            )

    def batch_at(step):
        batch = np.random.default_rng(step).normal(size=(16, 8)).astype(np.float32)
        return batch if kind == "split" else put(batch, P("d"))

    return model, batch_at


@pytest.mark.parametrize(("kind", "devices"), [("split", 8), ("replicated", 2), ("batch", 2)])
def test_resumes_on_devices(kind, devices, tmp_path):
    """In the bits of the run that was not cut after it; and on other numbers of devices."""

    def run_to(steps, count, **options):
        model, batches = on_mesh(kind, count)
        options = {
            # A count and a trace of each parameter, which compile for less than Adam's.
            "optimizer": optax.sgd(optax.linear_schedule(1e-2, 0, 9), momentum=0.9),
            "folder": tmp_path, "clip_norm": 1.0,
            "monitor": "score", "mode": "min",
            "evaluate": lambda model: {"score": float(np.abs(model.last.bias[...]).sum())},
        } | options  # fmt: skip
        _, result = run(steps, model=model, batch_at=batches, every=2, **options)
        return [np.array(a) for a in jax.tree.leaves(nnx.state(model, nnx.Param))], result

    expected, whole = run_to(6, devices)
    shutil.rmtree(tmp_path / "6")
    actual, result = run_to(6, devices)  # from step 4
    assert result == whole
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    if kind == "split":
        assert run_to(8, 4)[1].step == 8


def test_strict_modes(strict_modes, tmp_path):
    """The whole of it: clipping, bfloat16, evaluation, the best, a folder."""
    options = {"clip_norm": 1.0, "compute_dtype": jnp.bfloat16, "folder": tmp_path} | scores()
    options |= {"optimizer": optax.adam(1e-2)}
    run(10, **options)
    _, result = run(20, **options)
    assert result.step == 20


def test_buffers_that_are_shared():
    """By parameters, and by the optimizer's state with them: each has its own in the step."""

    class Shared(Model):
        def __init__(self):
            super().__init__()
            self.again = nnx.Param(self.last.bias[...])
            self.tied = self.first.kernel

    optimizer = optax.chain(
        optax.adam(1e-2),
        optax.GradientTransformation(lambda params: (params, params), lambda g, s, p: (g, s)),
    )
    model, _ = run(3, model=Shared(), optimizer=optimizer)
    assert model.tied is model.first.kernel
    run(3, model=model, optimizer=optax.contrib.schedule_free_adamw(1e-2))


def test_weak_types_do_not_change_a_resumed_run(tmp_path):
    """A state of weakly typed scalars, in bfloat16 parameters, where the type decides the bits."""
    optimizer = optax.GradientTransformation(
        lambda params: jnp.asarray(0.01),
        lambda g, rate, p: (jax.tree.map(lambda u: -rate * u, g), rate * 1.01),
    )

    def half():
        model = Model()
        model.first.kernel[...] = model.first.kernel[...].astype(jnp.bfloat16)
        return model

    options = {"optimizer": optimizer}
    run(10, model=half(), folder=tmp_path, **options)
    actual = after(20, model=half(), folder=tmp_path, **options)
    np.testing.assert_array_equal(actual, after(20, model=half(), **options))


BY_ROWS = {
    "adagrad": optim.adagrad(0.1),
    "lazy_adamw": optim.lazy_adamw(0.1),
    "rowwise_adam": optim.rowwise_adam(0.1),
    "lazy_lion": optim.lazy_lion(0.1),
    "ftrl": optim.ftrl(0.1, l1=0.01),
}


class Tables(nnx.Module):
    """A table for each optimizer by rows, and what is dense."""

    def __init__(self):
        for name in BY_ROWS:
            setattr(self, name, nnx.Param(jnp.asarray(np.ones((9, 2), np.float32))))
        self.scale = nnx.Param(jnp.asarray(np.ones(2, np.float32)))


def test_states_of_optimizers_by_rows(tmp_path):
    """All of them in one chain, cut between the mini-batches of an update."""

    def loss(model, ids, key):
        read = [getattr(model, name)[...][ids] for name in BY_ROWS]
        return ((jnp.stack(read) * model.scale[...]) ** 2).mean()

    optimizer = optax.chain(
        optim.clip_by_global_norm(0.5),
        optax.partition(
            BY_ROWS | {"scale": optax.adamw(0.1)}, {name: name for name in [*BY_ROWS, "scale"]}
        ),
    )
    options = {
        "loss": None,
        "gradients": rows.value_and_grad(loss),
        "batch_at": lambda step: np.arange(3) * (step + 1) % 9,
        "optimizer": optim.accumulate(optimizer, 3, lambda path: 4 * (path != ("scale",))),
        "folder": tmp_path,
        "every": 4,
    }
    whole, _ = run(6, model=Tables(), **options)
    shutil.rmtree(tmp_path / "6")
    found, _ = run(6, model=Tables(), **options)  # from step 4
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(whole))
    assert all(
        (np.asarray(leaf) != 1).any() for leaf in jax.tree.leaves(nnx.state(whole, nnx.Param))
    )
