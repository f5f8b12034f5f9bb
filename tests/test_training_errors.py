"""What the model holds after an error, Ctrl-C or NaN."""

import _thread
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small_run import Model, after, batch_at, evaluations, kernel, loss, run

pytestmark = pytest.mark.usefixtures("cheap_parameters")


def held(caught):
    """The step that the error's note says."""
    return int(
        caught.value.__notes__[-1].removeprefix("The model holds the parameters of step ")[:-1]
    )


class Stop(Exception):  # noqa: N818
    pass


def stopping(error, function, at):
    """``function``, that raises at its call number ``at``."""
    calls = iter(range(1000))

    def call(argument):
        if next(calls) == at:
            raise error
        return function(argument)

    return call


@pytest.mark.parametrize(
    ("error", "in_folder"),
    [(KeyboardInterrupt(), True), (Stop(), False), (FloatingPointError(), False)],
)
def test_an_error_hands_back_the_last_step(error, in_folder, tmp_path):
    """Out of batch_at of step 15, and out of the second evaluation."""
    model = Model()
    folder = tmp_path if in_folder else None
    with pytest.raises(type(error)) as caught:
        run(40, model=model, batch_at=stopping(error, batch_at, 15), folder=folder)
    assert held(caught) == 15
    np.testing.assert_array_equal(kernel(model), after(15))
    if in_folder:  # goes on from step 10, in the same bits
        np.testing.assert_array_equal(after(40, folder=folder), after(40))

    model = Model()
    with pytest.raises(type(error)):
        run(40, model=model, evaluate=stopping(error, lambda model: {}, 1))
    np.testing.assert_array_equal(kernel(model), after(20))


def test_an_error_hands_back_the_best():
    options, seen = evaluations(0.1, 0.9, 0.3)
    model = Model()
    with pytest.raises(StopIteration) as caught:
        run(100, model=model, **options)
    assert held(caught) == 20
    np.testing.assert_array_equal(kernel(model), seen[1])


def test_an_error_before_the_first_evaluation_hands_back_the_last_step():
    options, _ = evaluations(0.1)
    model = Model()
    with pytest.raises(Stop):
        run(40, model=model, batch_at=stopping(Stop(), batch_at, 7), **options)
    np.testing.assert_array_equal(kernel(model), after(7))


@pytest.mark.parametrize("nan", ["loss", "parameters"])
@pytest.mark.parametrize("debug", [False, True])
def test_nan_hands_back_the_last_good_parameters(nan, debug, tmp_path):
    """From step 25 on; with jax_debug_nans JAX may see it at once. No bad step is saved."""

    def bad(model, batch, key):
        value = loss(model, batch["x"], key)
        if nan == "parameters":  # the root's derivative at 0 times 0
            return value + jnp.sqrt(batch["zero"] * value) * batch["zero"]
        return value + jnp.log(batch["zero"] - 1)

    def batches(step):
        return {"x": batch_at(step), "zero": np.float32(step < 25) + np.float32(nan == "loss")}

    model = Model()
    jax.config.update("jax_debug_nans", debug)
    try:
        with pytest.raises(FloatingPointError, match=r"the loss is|invalid value") as caught:
            run(60, model=model, loss=bad, batch_at=batches, folder=tmp_path)
    finally:
        jax.config.update("jax_debug_nans", False)
    step = held(caught)
    assert step == 20 or (debug and step == 25)
    whole = Model()
    run(step, model=whole, loss=bad, batch_at=batches)
    np.testing.assert_array_equal(kernel(model), kernel(whole))
    assert max(int(p.name) for p in tmp_path.iterdir()) == 20


def test_parameters_that_become_nan_at_the_last_step_are_not_saved(tmp_path):
    def poison(updates, state, params=None):
        bad = jnp.where(state == 19, jnp.nan, 0.0)
        return jax.tree.map(lambda u: u * -0.1 + bad, updates), state + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.int32(0), poison)
    model = Model()
    with pytest.raises(FloatingPointError, match="parameters/first/bias has become NaN before st"):
        run(20, model=model, optimizer=optimizer, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["10"]
    np.testing.assert_array_equal(kernel(model), after(10, optimizer=optimizer))


def test_infinities_of_the_start_are_allowed(tmp_path):
    """A bias of -inf keeps a class out; and a plateau's best begins with one."""

    def masked(model, batch, key):
        return -jax.nn.log_softmax(model.first(batch))[:, 0].mean()

    model = Model()
    model.first.bias[...] = model.first.bias[...].at[3].set(-jnp.inf)
    plateau = optax.contrib.reduce_on_plateau(patience=5)
    optimizer = optax.GradientTransformation(
        plateau.init, lambda g, s, p: plateau.update(jax.tree.map(lambda g: -g, g), s, p, value=1.0)
    )
    run(20, model=model, loss=masked, optimizer=optimizer, folder=tmp_path)
    assert model.first.bias[3] == -jnp.inf


@pytest.fixture
def listening():
    """Ctrl-C as in a terminal: a shell's background process is started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_within_a_step_waits_for_its_end(listening):
    """Signals that come while the step is traced: the state that it takes is not lost."""
    model = Model()

    def interrupting(*args):
        _thread.interrupt_main()
        return loss(*args)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(40, model=model, loss=interrupting)
    assert held(caught) == 1
    np.testing.assert_array_equal(kernel(model), after(1))


def test_ctrl_c_at_any_time(listening):
    """From another thread: what is held is that of some step, whole."""
    kernels = {}

    def watched(model):
        kernels[len(kernels) + 1] = kernel(model)
        return {}

    run(100, every=1, evaluate=watched)
    for delay in (0.4, 0.7):
        model = Model()
        timer = threading.Timer(delay, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            run(10**6, model=model, every=10**5)
        timer.join()
        step = held(caught)
        if 0 < step <= 100:
            np.testing.assert_array_equal(kernel(model), kernels[step])
        assert np.isfinite(kernel(model)).all()
