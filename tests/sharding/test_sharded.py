"""Losses, samplers and row-sparse steps on eight devices: equal to those on one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from scipy import stats

from jaxnets import optim
from jaxnets.kernels import (
    ShardedUnigram,
    Unigram,
    VocabSharding,
    compiling_for,
    draw_samples,
    gather_rows,
    linear_softmax_cross_entropy,
    linear_top_k,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.samplers import without_replacement
from tests import exact_loss as equation
from tests.fixed_samples import fixed_samples
from tests.inputs import changed
from tests.near import assert_near
from tests.sampled_losses import sampled_loss
from tests.sharding.row_steps import row_gradients

VOCAB, FEATURES, BATCH, TIME = 1600, 24, 8, 3


def make_mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind, kind))


SHARDINGS = {
    "vocab and tokens": lambda mesh: VocabSharding(mesh, "vocab", "data"),
    "vocab over all": lambda mesh: VocabSharding(mesh, ("data", "vocab")),
    "vocab only": lambda mesh: VocabSharding(mesh, "vocab"),
    "tokens only": lambda mesh: VocabSharding(mesh, None, "data"),
}


def normal(seed, *shape, dtype=jnp.float32):
    """Of NumPy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@cache
def problem(dtype=jnp.float32):
    return (
        normal(0, BATCH, TIME, FEATURES, dtype=dtype),
        normal(1, VOCAB, FEATURES, dtype=dtype),
        normal(2, VOCAB, dtype=dtype),
        jnp.asarray(np.random.default_rng(3).integers(0, VOCAB, (BATCH, TIME))),
    )


def place(sharding, hidden, weight, bias, labels):
    tokens = NamedSharding(sharding.mesh, sharding.token_spec)
    table = NamedSharding(sharding.mesh, sharding.table_spec)
    return jax.device_put((hidden, weight, bias, labels), (tokens, table, table, tokens))


def close(got, wanted, dtype=jnp.float32):
    """Sums over features and classes in another order, each of them rounded."""
    tolerance = 8 * float(jnp.finfo(dtype).eps) * FEATURES**0.5
    assert_near(got, wanted, tolerance, 1e-3)


def alternating(names, options):
    """(kind of axes, name, one of two options) that runs, and the other kind and option.

    Of these a case is traced only: what they refuse they refuse then.
    """
    kinds = AxisType.Auto, AxisType.Explicit
    for n, name in enumerate(names):
        k, m = n % 2, (n + 1) // 2 % 2
        yield kinds[k], name, options[m], (kinds[1 - k], options[1 - m])


def assert_traces(function, arrays, wanted):
    found = jax.eval_shape(function, *arrays)
    shapes = [
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (found, wanted)
    ]
    assert shapes[0] == shapes[1]


EXACT_OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3}


def exact_loss(hidden, weight, bias, labels, **options):
    return linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, ignore_index=5, **EXACT_OPTIONS, **options
    )


@cache
def exact_by_hand(dtype):
    """The mean over tokens and its gradients, in the arrays' dtypes."""
    hidden, weight, bias, labels = problem(dtype)
    losses, _, backward = equation.exact_loss(hidden, weight, labels, bias, **EXACT_OPTIONS)
    factors = (np.asarray(labels) != 5) / (np.asarray(labels) != 5).sum()
    gradients = backward(factors)[:3]
    return (
        np.float32((losses * factors).sum()),
        tuple(np.asarray(gradient, dtype) for gradient in gradients),
    )


@pytest.mark.parametrize(
    ("kind", "name", "dtype", "traced"), [*alternating(SHARDINGS, (jnp.float32, jnp.bfloat16))]
)
def test_exact_loss(kind, name, dtype, traced):
    def case(kind, dtype):
        sharding = SHARDINGS[name](make_mesh(kind))
        sharded = jax.value_and_grad(partial(exact_loss, sharding=sharding), (0, 1, 2))
        return sharded, place(sharding, *problem(dtype)), exact_by_hand(dtype)

    function, placed, wanted = case(kind, dtype)
    got = jax.jit(function)(*placed)
    close(got, wanted, dtype)
    for gradient, array in zip(got[1], placed, strict=False):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert_traces(*case(*traced))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_exact_loss_by_pallas_on_each_shard(platform):
    sharding = SHARDINGS["vocab and tokens"](make_mesh())
    arrays = problem()

    def loss(hidden, weight, bias, labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, implementation="pallas", sharding=sharding
        )

    with compiling_for(platform, interpret=True):
        got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*place(sharding, *arrays))
    hidden, weight, bias, labels = arrays
    losses, _, backward = equation.exact_loss(hidden, weight, labels, bias)
    close(got, (losses.mean(), backward(1 / losses.size)[:3]))


def test_exact_loss_without_bias_and_a_loss_for_each_token():
    sharding = SHARDINGS["vocab and tokens"](make_mesh())
    hidden, weight, _, labels = place(sharding, *problem())
    cotangent = np.random.default_rng(7).normal(size=(BATCH, TIME))

    def loss(hidden, weight):
        losses = linear_softmax_cross_entropy(
            hidden, weight, labels, reduction="none", soft_cap=4.0, sharding=sharding
        )
        return (losses * cotangent.astype(np.float32)).sum(), losses

    got = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, weight)  # outside of jit
    losses, _, backward = equation.exact_loss(hidden, weight, labels, soft_cap=4.0)
    close(got, (((losses * cotangent).sum(), losses), backward(cotangent)[:2]))


@pytest.mark.smoke
def test_classes_that_pad_the_vocabulary_have_no_effect():
    """A whole shard of bias -inf is no class, and no NaN."""
    sharding = SHARDINGS["vocab only"](make_mesh())
    hidden, weight, bias, labels = problem()
    labels, kept = np.asarray(labels) % 1200, 1200  # the last of the four shards is padding
    padded_bias = np.where(np.arange(VOCAB) < kept, bias, -np.inf).astype(np.float32)

    def sharded(hidden, weight, bias):
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, sharding=sharding)

    value, gradients = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(hidden, weight, padded_bias)
    losses, _, backward = equation.exact_loss(hidden, weight, labels, padded_bias)
    close((value, gradients), (losses.mean(), backward(1 / losses.size)[:3]))
    assert not np.asarray(gradients[1])[kept:].any()


def test_a_label_out_of_range_is_nan_as_on_one_device():
    sharding = SHARDINGS["vocab and tokens"](make_mesh())
    hidden, weight, bias, labels = problem()

    @jax.jit
    def losses(labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, reduction="none", sharding=sharding
        )

    found = losses(changed(changed(labels, (2, 1), VOCAB), (4, 0), -1))
    assert np.argwhere(np.isnan(found)).tolist() == [[2, 1], [4, 0]]


@cache
def sampled_problem(num_true):
    """Arrays, samples, and the gradients by hand: with a bias and without."""
    hidden, weight, bias, labels = problem()
    draw = np.random.default_rng(4)
    if num_true:
        labels = jnp.asarray(draw.integers(0, VOCAB, (BATCH, TIME, num_true)))
    samples = fixed_samples(VOCAB, labels, draw.permutation(VOCAB)[:64])
    arrays = hidden, weight, bias, labels
    losses, backward = sampled_loss("softmax", hidden, weight, labels, samples, bias)
    _, without_bias = sampled_loss("softmax", hidden, weight, labels, samples)
    share = 1 / losses.size
    wanted = (losses.mean(), backward(share)), without_bias(share)[:2]
    return arrays, samples, jax.tree.map(np.float32, wanted)


def sampled_gradients(hidden, weight, bias, labels, samples, **options):
    def loss(hidden, weight, bias=None):
        return sampled_softmax_cross_entropy(hidden, weight, labels, samples, bias=bias, **options)

    with_bias = jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias)
    return with_bias, jax.grad(loss, (0, 1))(hidden, weight)


@pytest.mark.parametrize(("kind", "name", "num_true", "traced"), [*alternating(SHARDINGS, (0, 2))])
def test_sampled_loss(kind, name, num_true, traced):
    def case(kind, num_true):
        sharding = SHARDINGS[name](make_mesh(kind))
        arrays, samples, wanted = sampled_problem(num_true)
        sharded = partial(sampled_gradients, samples=samples, sharding=sharding)
        return sharded, place(sharding, *arrays), wanted

    function, placed, wanted = case(kind, num_true)
    close(jax.jit(function)(*placed), wanted)
    assert_traces(*case(*traced))


OPTIMIZERS = {
    "sgd": optim.sgd(0.3),
    "momentum": optim.momentum(0.3),
    "adagrad": optim.adagrad(0.3),
    "rowwise_adagrad": optim.rowwise_adagrad(0.3),
    "lazy_adam": optim.lazy_adam(0.3),
    "rowwise_adam": optim.rowwise_adam(0.3),
    "ftrl": optim.ftrl(0.3, l1=0.01),
}


def row_update(optimizer, gradients, state, tables):
    updates, state = optimizer.update(gradients, state, tables)
    return optim.apply_updates(tables, updates), state


def row_steps(tables, states, *arrays, sharding=None):
    """A step of each optimizer, all of them by the gradient that the first one's tables have."""
    update = partial(optim.sharded_update, sharding) if sharding else row_update
    value, gradients = row_gradients(next(iter(tables.values())), *arrays, sharding=sharding)
    found = {
        name: update(OPTIMIZERS[name], gradients, states[name], own) for name, own in tables.items()
    }
    return value, *({name: pair[part] for name, pair in found.items()} for part in range(2))


@cache
def batches():
    """Labels and samples of three steps."""
    labels = [(problem()[3] + 7 * step) % VOCAB for step in range(3)]
    draw = np.random.default_rng(0)
    return [(a, fixed_samples(VOCAB, a, draw.permutation(VOCAB)[:48])) for a in labels]


@cache
def steps_on_one_device():
    """The loss, and each optimizer's tables and state, after each step."""
    hidden, weight, bias, _ = problem()
    tables = {"weight": weight, "bias": bias}
    states = jax.jit(lambda tables: {n: each.init(tables) for n, each in OPTIMIZERS.items()})(
        tables
    )
    found = [(None, dict.fromkeys(OPTIMIZERS, tables), states)]
    step = jax.jit(row_steps)
    for labels, samples in batches():
        found.append(step(*found[-1][1:], hidden, labels, samples))
    return found[1:]


# How the tables are split is the same to every optimizer: over one axis all of them, over several
# one whose state is like the table, one with a number a row, one with a count of steps; and a step
# outside of jit. The gradient is of the first one's tables, in the order of the names.
@pytest.mark.parametrize(
    ("names", "split", "jitted", "steps"),
    [
        (tuple(OPTIMIZERS), "vocab and tokens", True, 3),
        (("adagrad", "lazy_adam", "rowwise_adagrad"), "vocab over all", True, 3),
        (("lazy_adam",), "vocab and tokens", False, 1),
    ],
)
def test_row_sparse_steps(names, split, jitted, steps):
    """Losses, tables and every array of the optimizers' states."""
    sharding = SHARDINGS[split](make_mesh())
    hidden, weight, bias, _ = problem()
    layout = NamedSharding(sharding.mesh, sharding.table_spec)
    one = jax.device_put({"weight": weight, "bias": bias}, layout)
    tables = dict.fromkeys(names, one)
    states = jax.jit(
        lambda one: {name: optim.sharded_init(sharding, OPTIMIZERS[name], one) for name in names}
    )(one)
    for leaf in jax.tree.leaves([state.tables for state in states.values()]):
        assert leaf.sharding.is_equivalent_to(layout, leaf.ndim)
    step = partial(row_steps, sharding=sharding)
    step = jax.jit(step) if jitted else step
    for (labels, samples), wanted in zip(batches()[:steps], steps_on_one_device(), strict=False):
        got, tables, states = step(tables, states, hidden, labels, samples)
        value, *others = wanted
        close((got, tables, states), (value, *({n: x[n] for n in names} for x in others)))


COUNTS = np.arange(1, VOCAB + 1) % 97


def sharded_unigram(counts=COUNTS):
    return ShardedUnigram.split(SHARDINGS["vocab only"](make_mesh()), Unigram.from_counts(counts))


def test_a_split_unigram_draws_as_a_whole_one(monkeypatch):
    # How often a class repeats is one number on every device, and most of what is compiled.
    monkeypatch.setattr(without_replacement, "_poisson", lambda _key, mean: mean.astype(int))
    whole, split = Unigram.from_counts(COUNTS), sharded_unigram()
    labels = np.array([3, 500, 1599])

    @jax.jit
    def drawn(whole, split, key):
        return [
            [draw_samples(each, key, 50, labels, unique=unique) for each in (split, whole)]
            for unique in (False, True)
        ]

    for got, wanted in drawn(whole, split, jax.random.key(1)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    with jax.debug_nans(True):  # which op by op would meet the NaN of an id out of range
        got = split.log_probability(labels)
    np.testing.assert_array_equal(got, whole.log_probability(labels))


RACE = np.array([1, 2, 3, 4, 5, 6, 7, 12])


@cache
def race_of_4():
    split = sharded_unigram(RACE)
    return jax.jit(jax.vmap(lambda key: draw_samples(split, key, 4, jnp.array([0]))))


def races(seed):
    """The ids and the tries of 4,000 draws of 4 of 8."""
    found = race_of_4()(jax.random.split(jax.random.key(seed), 4000))
    return found.ids, found.tries


def test_the_split_race_has_the_distribution_of_repeated_draws():
    """Inclusion of each class among 4 of 8, by chi-squared: a false alarm in 10^4 runs."""
    drawn, _ = races(0)
    assert all(len(set(row)) == 4 for row in np.asarray(drawn).tolist())
    included = np.bincount(np.asarray(drawn).reshape(-1), minlength=8)
    # Exact inclusion probabilities, over all orders of successive draws without replacement.
    probability = RACE / RACE.sum()
    exact = np.zeros(8)

    def follow(chosen, mass, chance):
        if len(chosen) == 4:
            exact[list(chosen)] += chance
            return
        for k in set(range(8)) - set(chosen):
            follow((*chosen, k), mass + probability[k], chance * probability[k] / (1 - mass))

    follow((), 0.0, 1.0)
    variance = len(drawn) * exact * (1 - exact)
    z = (included - len(drawn) * exact) / np.sqrt(variance)
    # The counts are negatively correlated, so their largest is bounded by that of 8 independent.
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / 8)


def test_tries_of_the_split_race_are_those_of_repeated_draws():
    """Mean tries until 4 of 8 are found, within 4.5 standard errors: 7 false alarms in 10^6."""
    tries = np.asarray(races(1)[1], float)
    generator = np.random.default_rng(0)
    direct = []
    for row in generator.choice(8, (4000, 400), p=RACE / RACE.sum()):
        firsts = np.sort(np.unique(row, return_index=True)[1])
        direct.append(firsts[3] + 1)
    error = np.sqrt((tries.var() + np.var(direct)) / 4000)
    assert abs(tries.mean() - np.mean(direct)) < 4.5 * error


def test_bad_shardings():
    mesh = make_mesh()
    hidden, weight, bias, labels = problem()

    def loss(sharding, weight=weight, hidden=hidden, labels=labels):
        bias = jnp.zeros(weight.shape[0])
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, sharding=sharding)

    with pytest.raises(ValueError, match=r"sharding names \['model'\], the mesh has"):
        loss(VocabSharding(mesh, "model"))
    with pytest.raises(ValueError, match="must name an axis once"):
        loss(VocabSharding(mesh, "vocab", "vocab"))
    with pytest.raises(ValueError, match="multiple of the 4 shards, got 1599: pad weight"):
        loss(VocabSharding(mesh, "vocab"), weight=weight[:-1])
    with pytest.raises(ValueError, match="multiple of the 2 devices of 'data'"):
        loss(VocabSharding(mesh, "vocab", "data"), hidden=hidden[:7], labels=labels[:7])
    samples = fixed_samples(VOCAB, labels, np.arange(4))
    with pytest.raises(ValueError, match='implementation="pallas" cannot run here: it takes no'):
        sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias, implementation="pallas",
            sharding=VocabSharding(mesh, "vocab"),
        )  # fmt: skip


@pytest.mark.parametrize("loss", ["exact", "sampled"])
def test_tokens_left_out_leave_no_trace(loss):
    """Over two token axes, with labels of any integers; the same as without those tokens."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "vocab"), axis_types=(AxisType.Auto,) * 3)
    sharding = VocabSharding(mesh, "vocab", ("data", "fsdp"))
    hidden, weight, bias, labels = problem()
    samples = fixed_samples(VOCAB, labels, np.arange(12) ** 2)
    weights = changed(np.ones(labels.shape, np.float32), 1, 0)
    bad_hidden = changed(changed(hidden, 1, np.nan), 2, np.inf)
    bad_labels = np.array(labels, np.int64)
    bad_labels[1], bad_labels[2] = -7, -100
    kept = np.delete(np.arange(len(labels)), [1, 2])

    def ours(hidden, weight, bias):
        options = {"token_weights": weights, "ignore_index": -100}
        if loss == "exact":
            return linear_softmax_cross_entropy(
                hidden, weight, bad_labels, bias=bias, **options, sharding=sharding
            )
        return sampled_softmax_cross_entropy(
            hidden, weight, bad_labels, samples, bias=bias, **options, sharding=sharding
        )

    some = np.asarray(hidden)[kept], weight, labels[kept]
    if loss == "exact":
        losses, _, backward = equation.exact_loss(*some, bias)
    else:
        counts = samples.labels_log_expected_count[kept]
        few = samples._replace(labels_log_expected_count=counts)
        losses, backward = sampled_loss("softmax", *some, few, bias)
    d_hidden, *others = backward(1 / losses.size)[:3]
    of_all = np.zeros(hidden.shape)
    of_all[kept] = d_hidden
    got = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(bad_hidden, weight, bias)
    close(got, (losses.mean(), (of_all, *others)))


def test_a_dense_gradient_is_no_rows():
    sharding, table = SHARDINGS["vocab only"](make_mesh()), jnp.ones((8, 2))
    state = optim.sharded_init(sharding, optim.sgd(0.1), table)
    with pytest.raises(TypeError, match=r"must be SparseRows for each table, got \(8, 2\)"):
        optim.sharded_update(sharding, optim.sgd(0.1), table, state, table)
    chain = optax.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1))
    with pytest.raises(
        TypeError, match=r"optimizer must be one by rows alone, .* whose state is tuple"
    ):
        optim.sharded_init(sharding, chain, table)


def test_a_mesh_is_no_sharding(users_checks):
    mesh, (hidden, weight, _, labels) = make_mesh(), problem()
    for function in (
        lambda: linear_softmax_cross_entropy(hidden, weight, labels, sharding=mesh),
        lambda: linear_top_k(hidden, weight, 2, sharding=mesh),
        lambda: gather_rows(jnp.ones((8, 2)), jnp.arange(2), sharding=mesh),
        lambda: optim.sharded_init(mesh, optim.sgd(0.1), jnp.ones((8, 2))),
    ):
        with pytest.raises(
            TypeError, match=r"got a Mesh with .*write VocabSharding\(mesh, vocab_axis="
        ):
            function()
