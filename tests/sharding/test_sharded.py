"""Losses on eight devices: equal to those on one, and what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets import optim
from jaxnets.kernels import (
    VocabSharding,
    compiling_for,
    gather_rows,
    linear_softmax_cross_entropy,
    linear_top_k,
    sampled_softmax_cross_entropy,
)
from tests import exact_loss as equation
from tests.fixed_samples import fixed_samples
from tests.inputs import changed
from tests.sampled_losses import sampled_loss
from tests.sharding.split import (
    BATCH,
    SHARDINGS,
    TIME,
    VOCAB,
    assert_traces,
    close,
    make_mesh,
    other,
    place,
    problem,
)


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


def sampled_gradients(hidden, weight, bias, labels, samples, *, has_bias, **options):
    def loss(hidden, weight, bias=None):
        return sampled_softmax_cross_entropy(hidden, weight, labels, samples, bias=bias, **options)

    if has_bias:
        return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias)
    return jax.grad(loss, (0, 1))(hidden, weight)


# Run by two shardings, and traced by the other two, on the other kind of axes.
@pytest.mark.parametrize(
    ("name", "kind", "num_true", "traced", "has_bias"),
    [
        ("vocab and tokens", AxisType.Auto, 0, "tokens only", False),
        ("vocab over all", AxisType.Explicit, 2, "vocab only", True),
    ],
)
def test_sampled_loss_with_and_without_bias(name, kind, num_true, traced, has_bias):
    def case(name, kind, num_true, has_bias):
        sharding = SHARDINGS[name](make_mesh(kind))
        arrays, samples, (with_bias, without) = sampled_problem(num_true)
        sharded = partial(sampled_gradients, samples=samples, has_bias=has_bias, sharding=sharding)
        return sharded, place(sharding, *arrays), with_bias if has_bias else without

    function, placed, wanted = case(name, kind, num_true, has_bias)
    close(jax.jit(function)(*placed), wanted)
    assert_traces(*case(traced, other(kind), 2 - num_true, not has_bias))


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


def test_a_mesh_is_no_sharding(users_checks):
    mesh, (hidden, weight, _, labels) = make_mesh(), problem()
    samples = fixed_samples(VOCAB, labels, np.arange(4))
    for function in (
        lambda: linear_softmax_cross_entropy(hidden, weight, labels, sharding=mesh),
        lambda: sampled_softmax_cross_entropy(hidden, weight, labels, samples, sharding=mesh),
        lambda: linear_top_k(hidden, weight, 2, sharding=mesh),
        lambda: gather_rows(jnp.ones((8, 2)), jnp.arange(2), sharding=mesh),
        lambda: optim.sharded_init(mesh, optim.sgd(0.1), jnp.ones((8, 2))),
    ):
        with pytest.raises(
            TypeError, match=r"got a Mesh with .*write VocabSharding\(mesh, vocab_axis="
        ):
            function()
