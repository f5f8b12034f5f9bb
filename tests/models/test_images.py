"""Digits, U-Net, the residual network, the autoencoder and DiscoGAN: what they are, and learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console
from sklearn.datasets import load_digits

from jaxnets.layers import ResizeConv, resize
from jaxnets.models import Autoencoder, DigitsCNN, DiscoGAN, ImageToImage, UNet
from jaxnets.models.digits import random_shift
from jaxnets.training import fit

pytestmark = pytest.mark.usefixtures("cheap_parameters")

QUIET = Console(quiet=True)
called = nnx.jit(lambda model, *arrays: model(*arrays))


def train(model, loss, batch_at, steps, optimizer):
    fit(
        model, loss, batch_at, steps, optimizer=optimizer, key=jax.random.key(0), console=QUIET
    )  # fmt: skip
    model.eval()


def momentum(rate, steps):
    """To a rate of 0, where the statistics of batches settle; Adam compiles for twice as long.

    Of one flat vector, as the others are: an update of each parameter is a kernel or more for each.
    """
    return optax.flatten(optax.sgd(optax.linear_schedule(rate, 0, steps), momentum=0.9))


def real_digits():
    """1,437 real digits of 8 x 8 for training, 360 held out."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = (digits.images[order, ..., None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int32)
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def test_digits_learn_real_ones():
    (images, labels), (test_images, test_labels) = real_digits()
    model = DigitsCNN((8, 8), 10, features=(16,), hidden_features=64, dropout=0.1, rngs=nnx.Rngs(0))

    def batch_at(step):
        chosen = np.random.default_rng(step).integers(len(images), size=32)
        return images[chosen], labels[chosen]

    def loss(model, batch, key):
        logits = model(random_shift(batch[0], key, 1))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), {}

    train(model, loss, batch_at, 120, momentum(0.1, 120))
    found = called(model, jnp.asarray(test_images)).argmax(-1)
    assert (np.asarray(found) == test_labels).mean() > 0.96


def test_digits_slide():
    model = DigitsCNN((8, 8), 10, features=(4, 8), hidden_features=16, rngs=nnx.Rngs(0))
    model.eval()
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    both = nnx.jit(lambda model, image: (model.slide(image), model(image)))
    slid, whole = both(model, image)
    # 32 products and a few more layers in float32.
    np.testing.assert_allclose(slid[:, 0, 0], whole, atol=1e-5)
    larger = jnp.asarray(np.zeros((1, 16, 12, 1), np.float32))
    assert nnx.eval_shape(lambda model: model.slide(larger), model).shape == (1, 3, 2, 10)
    assert model.filters().shape == (3, 3, 4)
    with pytest.raises(ValueError, match="for larger ones there is slide"):
        model(larger)


def test_random_shift_moves_and_fills_with_zeros():
    images = np.ones((50, 5, 5, 1), np.float32)
    moved = np.asarray(
        jax.jit(lambda images, key: random_shift(images, key, 2))(images, jax.random.key(0))
    )
    rows = (moved.max((2, 3)) > 0).sum(1)
    assert set(rows.tolist()) == {3, 4, 5}
    assert set(np.unique(moved).tolist()) == {0.0, 1.0}


def squares(step, side=16):
    """Noisy images with one bright square, and where it is."""
    rng = np.random.default_rng(step)
    images = rng.normal(scale=0.3, size=(8, side, side, 1)).astype(np.float32)
    masks = np.zeros((8, side, side), np.float32)
    for image, mask in zip(images, masks, strict=True):
        row, column = rng.integers(side - 8, size=2)
        mask[row : row + 8, column : column + 8] = 1
        image[..., 0] += mask
    return images, masks


def test_unet_learns_to_segment_at_any_size():
    """At the images' own and at another, both by one network."""
    model = UNet(1, 1, features=(4, 8), rngs=nnx.Rngs(0))
    size = 8, 20

    def targets(masks):
        return masks, resize(masks[..., None], size)[..., 0].round()

    def logits_and_targets(model, images, masks):
        logits = [model(images, to)[..., 0] for to in (None, size)]
        return list(zip(logits, targets(masks), strict=True))

    def loss(model, batch, key):
        pairs = logits_and_targets(model, *batch)
        losses = [optax.sigmoid_binary_cross_entropy(*pair) for pair in pairs]
        return sum(each.mean() for each in losses), {}

    train(model, loss, squares, 40, momentum(0.5, 40))
    pairs = nnx.jit(logits_and_targets)(model, *squares(10**6))
    for pair, shape in zip(pairs, [(8, 16, 16), (8, *size)], strict=True):
        found, wanted = (np.asarray(each) > 0 for each in pair)
        assert found.shape == shape
        assert (found & wanted).sum() / (found | wanted).sum() > 0.8


def test_unet_takes_odd_sizes_and_refuses_small_ones():
    model = UNet(3, 2, features=(4, 8, 8), rngs=nnx.Rngs(0))
    odd = jnp.asarray(np.zeros((1, 13, 7, 3), np.float32))
    assert nnx.eval_shape(lambda model: model(odd), model).shape == (1, 13, 7, 2)
    with pytest.raises(ValueError, match="at least 4 high and wide"):
        model(jnp.asarray(np.zeros((1, 13, 3, 3), np.float32)))


def test_image_to_image_learns_what_resizing_loses():
    """Sharp stripes: better than the bilinear image that it adds to."""

    def batch_at(step):
        rng = np.random.default_rng(step)
        place = np.arange(24)[:, None, None] + rng.uniform(0, 9, (4, 1, 1, 1))
        stripes = (np.sin(place * 2 * np.pi / 9) > 0) * np.ones((1, 1, 18, 1))
        return stripes.astype(np.float32)

    def small(images):
        return nnx.avg_pool(images, (2, 2), strides=(2, 2))

    model = ImageToImage(1, 1, features=8, blocks=1, rngs=nnx.Rngs(0))

    def loss(model, images, key):
        return ((model(small(images), (24, 18)) - images) ** 2).mean(), {}

    train(model, loss, batch_at, 100, optax.flatten(optax.adam(1e-2)))

    @nnx.jit
    def errors(model, images):
        plain = resize(small(images), (24, 18))
        return loss(model, images, None)[0], ((plain - images) ** 2).mean()

    error, plain = errors(model, batch_at(10**6))
    assert error < plain / 2


def test_autoencoder_learns_real_digits_at_another_size():
    (images, _), (test_images, _) = real_digits()
    model = Autoencoder((8, 8), (12, 10), code=12, features=(8,), rngs=nnx.Rngs(0))

    def loss(model, images, key):
        return ((model(images) - resize(images, (12, 10))) ** 2).mean(), {}

    def batch_at(step):
        return images[np.random.default_rng(step).integers(len(images), size=32)]

    train(model, loss, batch_at, 120, optax.flatten(optax.adam(1e-2)))
    both = nnx.jit(lambda model, images: (model(images), resize(images, (12, 10))))
    found, wanted = map(np.asarray, both(model, test_images))
    assert ((found - wanted) ** 2).mean() < ((wanted - wanted.mean(0)) ** 2).mean() / 2
    with pytest.raises(ValueError, match=r"images must be \[batch, 8, 8"):
        model(jnp.asarray(np.zeros((1, 12, 10, 1), np.float32)))


def test_each_player_of_discogan_has_its_own_gradient():
    model = DiscoGAN(3, (4,), judge_features=(4,), rngs=nnx.Rngs(0))
    a, b = map(jnp.float32, np.random.default_rng(0).uniform(size=(2, 4, 8, 8, 3)))
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    names = "generators", "discriminators"

    @jax.jit
    def gradients(parameters, rest):
        def parts(parameters):
            _, found = nnx.merge(graph, parameters, rest, copy=True).loss(a, b)
            return {name: found[name] for name in names}

        _, of = jax.vjp(parts, parameters)
        return {name: of({n: jnp.float32(n == name) for n in names})[0] for name in names}

    both = gradients(parameters, rest)
    for name, own, others in (
        ("generators", "a_to_b", "judge_a"),
        ("discriminators", "judge_a", "a_to_b"),
    ):
        found = both[name]
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found[own]))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found[others]))


def test_discogan_learns_two_domains_without_pairs():
    """Squares on a light ground, and on a dark one."""

    def images(seed, ground):
        rng = np.random.default_rng(seed)
        found = np.full((4, 16, 16, 3), ground, np.float32)
        for image in found:
            row, column = rng.integers(10, size=2)
            image[row : row + 6, column : column + 6] = (0.5, 0.1, 0.9)
        return found

    model = DiscoGAN(3, (8,), judge_features=(8,), rngs=nnx.Rngs(0))
    train(
        model, lambda model, batch, key: model.loss(*batch),
        lambda step: (images((0, step), 0.9), images((1, step), 0.2)), 40,
        momentum(0.1, 40),
    )  # fmt: skip
    light, dark = images(7, 0.9), images(7, 0.2)
    translated = nnx.jit(lambda model, images: model.a_to_b(images))(model, light)
    error = np.abs(translated - dark).mean()
    assert error < np.abs(light - dark).mean() / 3


def test_resize():
    maps = jnp.asarray(np.ones((1, 4, 6, 2), np.float32))
    assert resize(maps, (4, 6)) is maps
    # Halving by a linear filter keeps a constant.
    np.testing.assert_allclose(resize(maps, (2, 3)), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        ResizeConv(2, 2, rngs=nnx.Rngs(0))(maps, (0, 4))
