"""The layer calls the kernels with its own parameters; tied weights; linen through nnx.bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets.kernels import (
    LogUniform,
    Samples,
    Tiles,
    draw_samples,
    linear_softmax_cross_entropy,
    linear_top_k,
)
from jaxnets.layers import OutputProjection
from tests.exact_loss import exact_loss

pytestmark = pytest.mark.usefixtures("cheap_parameters")

FEATURES, VOCAB = 6, 37


def inputs():
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(2, 5, FEATURES)).astype(np.float32)
    return hidden, draw.integers(VOCAB, size=(2, 5), dtype=np.int32)


@pytest.mark.parametrize("use_bias", [True, False])
def test_losses_and_logits_agree(use_bias):
    head = OutputProjection(FEATURES, VOCAB, use_bias=use_bias, rngs=nnx.Rngs(0))
    if use_bias:
        head.bias[...] = np.cos(np.arange(VOCAB, dtype=np.float32))
    hidden, labels = inputs()

    @nnx.jit
    def every(head, hidden, labels):
        samples = Samples.from_candidates(np.arange(VOCAB), labels)
        return (
            optax.softmax_cross_entropy_with_integer_labels(head.logits(hidden), labels),
            head.exact_loss(hidden, labels),
            head.loss(hidden, labels, reduction="none"),
            head.loss(hidden, labels, samples=samples),
        )

    expected, exact, losses, sampled = map(np.asarray, every(head, hidden, labels))
    np.testing.assert_allclose(exact, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(sampled, expected.mean(), rtol=1e-5)


def test_top_k_equals_sorting_all_logits():
    head = OutputProjection(FEATURES, VOCAB, rngs=nnx.Rngs(0))
    hidden, _ = inputs()
    sizes = 1, 37  # the module's own in one tile that is larger than the vocabulary

    @nnx.jit
    def every(head, hidden):
        in_tiles = [
            linear_top_k(
                hidden, head.weight[...], k, bias=head.bias[...], tiles=Tiles(vocab_tile=v)
            )
            for k, v in ((4, 5), (37, 5), (37, 37))
        ]
        return head.logits(hidden), in_tiles, [head.top_k(hidden, k) for k in sizes]

    logits, in_tiles, own = every(head, hidden)
    logits = np.asarray(logits)
    order = np.argsort(-logits, axis=-1, kind="stable")
    for values, ids in (*in_tiles, *own):
        expected = order[..., : ids.shape[-1]]
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(
            values, np.take_along_axis(logits, expected, -1), rtol=1e-5, atol=1e-6
        )
    for k, (_, ids) in zip(sizes, own, strict=True):
        assert ids.shape[-1] == k
        above, ties = head.label_rank(hidden, order[..., k - 1])
        assert (np.asarray(above) == k - 1).all()
        assert not np.asarray(ties).any()


def test_top_k_of_equal_logits_keeps_the_order_of_classes():
    _, ids = linear_top_k(jnp.ones((1, 2)), jnp.zeros((9, 2)), 5, tiles=Tiles(vocab_tile=2))
    assert ids.tolist() == [[0, 1, 2, 3, 4]]


def test_tied_weights_get_both_gradients():
    class Model(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(VOCAB, FEATURES, rngs=nnx.Rngs(0))
            self.head = OutputProjection(FEATURES, VOCAB, tied=self.embed, use_bias=False)

        def loss(self, labels):
            return self.head.loss(self.embed(labels), labels)

    model, (_, labels) = Model(), inputs()
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 1
    table = np.asarray(model.embed.embedding[...])
    gradient = nnx.jit(nnx.grad(lambda model, labels: model.loss(labels)))(model, labels)

    _, _, backward = exact_loss(table[labels], table, labels)
    of_inputs, wanted, *_ = backward(1 / labels.size)
    np.add.at(wanted, labels, of_inputs)
    np.testing.assert_allclose(gradient.embed.embedding[...], wanted, rtol=1e-4, atol=1e-6)


def test_bad_arguments():
    embed = nnx.Embed(VOCAB, FEATURES, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="tied must embed"):
        OutputProjection(FEATURES, VOCAB + 1, tied=embed)
    with pytest.raises(ValueError, match="rngs must be given"):
        OutputProjection(FEATURES, VOCAB)
    head = OutputProjection(FEATURES, VOCAB, tied=embed)
    with pytest.raises(ValueError, match="features = 6"):
        head.logits(jnp.ones((2, 5)))


def test_learns():
    head = OutputProjection(FEATURES, VOCAB, rngs=nnx.Rngs(0))
    hidden, labels = inputs()
    optimizer = nnx.Optimizer(head, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(head, optimizer, seed):
        samples = draw_samples(LogUniform(VOCAB), jax.random.key(seed), 10, labels, unique=False)
        gradient = nnx.grad(lambda head: head.loss(hidden, labels, samples=samples))(head)
        optimizer.update(head, gradient)

    def mean():
        weight, bias = np.asarray(head.weight[...]), np.asarray(head.bias[...])
        return exact_loss(hidden, weight, labels, bias)[0].mean()

    before = mean()
    for seed in range(40):
        step(head, optimizer, seed)
    assert mean() < before / 4


def test_linen_through_the_bridge():
    hidden, labels = inputs()

    class Loss(nnx.Module):
        def __init__(self, rngs):
            self.head = OutputProjection(FEATURES, VOCAB, rngs=rngs)

        def __call__(self, hidden, labels):
            return self.head.loss(hidden, labels)

    linen = nnx.bridge.to_linen(Loss)
    variables = linen.init(jax.random.key(0), hidden, labels)
    loss, gradient = jax.jit(jax.value_and_grad(linen.apply))(variables, hidden, labels)
    assert np.isfinite(loss)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_every_method_in_linen():
    hidden, labels = inputs()
    linen = nnx.bridge.to_linen(OutputProjection, FEATURES, vocab_size=VOCAB)
    variables = linen.init(jax.random.key(4), hidden)
    head = OutputProjection(FEATURES, VOCAB, rngs=nnx.Rngs(0))
    head.weight[...] = variables["params"]["weight"]
    samples = draw_samples(LogUniform(VOCAB), jax.random.key(3), 8, labels, unique=False)

    def apply(method, *arrays, **options):
        return linen.apply(variables, *arrays, nnx_method=method, **options)

    np.testing.assert_array_equal(linen.apply(variables, hidden), head.logits(hidden))
    np.testing.assert_array_equal(apply("logits", hidden), head(hidden))
    np.testing.assert_array_equal(apply("loss", hidden, labels), head.loss(hidden, labels))
    np.testing.assert_array_equal(
        apply("exact_loss", hidden, labels), head.exact_loss(hidden, labels)
    )
    np.testing.assert_array_equal(
        apply("loss", hidden, labels, samples=samples), head.loss(hidden, labels, samples=samples)
    )
    for a, b in zip(apply("top_k", hidden, 3), head.top_k(hidden, 3), strict=True):
        np.testing.assert_array_equal(a, b)

    gradient = jax.jit(jax.grad(lambda v: linen.apply(v, hidden, labels, nnx_method="loss")))
    weight, bias = (np.asarray(variables["params"][name]) for name in ("weight", "bias"))
    _, _, backward = exact_loss(hidden, weight, labels, bias)
    np.testing.assert_allclose(
        gradient(variables)["params"]["weight"], backward(1 / labels.size)[1], rtol=1e-5, atol=1e-7
    )


def test_what_is_refused(users_checks):
    for tied in (nnx.Linear(VOCAB, FEATURES, rngs=nnx.Rngs(0)), jnp.ones((VOCAB, FEATURES))):
        with pytest.raises(TypeError, match=r"tied must be the nnx\.Embed of the inputs"):
            OutputProjection(FEATURES, VOCAB, tied=tied)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        OutputProjection(FEATURES, 0, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"k must be an integer, got 2\.0"):
        OutputProjection(FEATURES, VOCAB, rngs=nnx.Rngs(0)).top_k(inputs()[0], 2.0)


def test_strict_modes(strict_modes):
    hidden, labels = inputs()
    head = OutputProjection(FEATURES, VOCAB, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    def loss(head):
        return head.logits(hidden).sum() + head.loss(hidden, labels)

    gradient = nnx.jit(nnx.grad(loss))(head)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(gradient))


def test_no_tokens():
    head = OutputProjection(FEATURES, VOCAB, rngs=nnx.Rngs(0))
    hidden, labels = jnp.ones((2, 0, FEATURES)), jnp.zeros((2, 0), jnp.int32)
    assert float(head.loss(hidden, labels)) == 0
    assert jax.eval_shape(head.logits, hidden).shape == (2, 0, VOCAB)
    assert head.top_k(hidden, 3)[1].shape == (2, 0, 3)


def test_from_linear_shares_the_parameters(users_checks):
    """Losses, log-probabilities and the best classes of an nnx.Linear as it is."""
    linear = nnx.Linear(FEATURES, VOCAB, rngs=nnx.Rngs(0))
    linear.bias[...] = np.cos(np.arange(VOCAB, dtype=np.float32))
    head, (hidden, labels) = OutputProjection.from_linear(linear), inputs()

    @nnx.jit
    def every(head, linear, hidden, labels):
        samples = Samples.from_candidates(np.arange(VOCAB), labels)
        return (
            linear(hidden),
            head(hidden),
            head.loss(hidden, labels),
            head.loss(hidden, labels, samples=samples),
            head.log_probs(hidden, labels).log_prob,
            head.top_k(hidden, 3).ids,
        )

    logits, own, loss, sampled, log_prob, ids = map(np.asarray, every(head, linear, hidden, labels))
    np.testing.assert_allclose(own, logits, rtol=1e-5, atol=1e-6)
    log_p = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    log_p = log_p - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(loss, -log_p.mean(), rtol=1e-5)
    np.testing.assert_allclose(log_prob, log_p, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=-1, kind="stable")[..., :3])
    np.testing.assert_allclose(sampled, -log_p.mean(), rtol=1e-4)
    gradient = nnx.eval_shape(nnx.grad(lambda head: head.loss(hidden, labels)), head)
    assert gradient["weight"].shape == linear.kernel.shape
    with pytest.raises(TypeError, match=r"linear must be an nnx\.Linear, got Embed"):
        OutputProjection.from_linear(nnx.Embed(3, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtype_computes_and_param_dtype_stores(dtype):
    head = OutputProjection(FEATURES, VOCAB, dtype=dtype, rngs=nnx.Rngs(0))
    hidden, labels = inputs()
    assert head.weight.dtype == jnp.float32
    assert jax.eval_shape(head, hidden).dtype == dtype
    cast = [np.asarray(a).astype(dtype) for a in (hidden, head.weight[...], head.bias[...])]

    @nnx.jit
    def both(head, hidden, weight, bias):
        return head.loss(inputs()[0], labels), linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias
        )

    np.testing.assert_array_equal(*both(head, *cast))
    gradient = nnx.eval_shape(nnx.grad(lambda head: head.loss(hidden, labels)), head)
    assert gradient["weight"].dtype == jnp.float32


def test_the_exact_losses_round_no_whole_table():
    """``dtype``: matmuls in it, the gradient of the parameters in theirs, no copy of the table."""
    head = OutputProjection(FEATURES, VOCAB, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    hidden, labels = inputs()
    graph, state = nnx.split(head)

    tiles = Tiles(vocab_tile=8)

    def loss(state, hidden):
        head = nnx.merge(graph, state)
        entropy = head.log_probs(hidden, labels, tiles=tiles).entropy
        return head.exact_loss(hidden, labels, tiles=tiles) - entropy.mean()

    text = jax.jit(jax.grad(loss)).lower(state, hidden).as_text()
    assert f"tensor<8x{FEATURES}xbf16>" in text
    assert f"tensor<{VOCAB}x{FEATURES}xbf16>" not in text
