"""What every image model does with sizes given as lists, with no images, and in strict modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.layers import ResizeConv, look_up, resize
from jaxnets.models import Autoencoder, CountRegressor, DigitsCNN, DiscoGAN, ImageToImage, SDCNet
from jaxnets.models import UNet as UNetModel
from jaxnets.models.sdcnet import count_regions
from tests.every_number import every_number
from tests.traced import traced

pytestmark = pytest.mark.usefixtures("cheap_parameters")


def rngs():
    return nnx.Rngs(0)


SMALL = {"features": (4, 4, 4), "hidden_features": 4}
MODELS = {
    "unet": (lambda: UNetModel(1, 2, features=(4, 4), rngs=rngs()), (2, 9, 11, 1)),
    "digits": (
        lambda: DigitsCNN((8, 8), 3, features=(4,), hidden_features=4, rngs=rngs()),
        (2, 8, 8, 1),
    ),
    "autoencoder": (lambda: Autoencoder((8, 8), (6, 9), code=2, rngs=rngs()), (2, 8, 8, 1)),
    "sdcnet": (lambda: SDCNet(**SMALL, divisions=1, rngs=rngs()).total, (1, 16, 16, 1)),
    "regressor": (lambda: CountRegressor(**SMALL, rngs=rngs()).total, (1, 16, 16, 1)),
    "discogan": (lambda: DiscoGAN(1, (4,), judge_features=(4,), rngs=rngs()).a_to_b, (2, 8, 8, 1)),
}


def made(name):
    make, shape = MODELS[name]
    model = make()
    getattr(model, "__self__", model).eval()
    return model, shape


@pytest.mark.parametrize("name", MODELS)
def test_no_images(name):
    model, shape = made(name)
    some, none = (
        jax.eval_shape(lambda images: model(images), jnp.ones((count, *shape[1:])))
        for count in (shape[0], 0)
    )
    assert none.shape == (0, *some.shape[1:])


@pytest.mark.parametrize("name", MODELS)
def test_strict_modes(name, strict_modes):
    """Every number on the way is looked at."""
    model, shape = made(name)
    value, gradient = every_number(
        jax.value_and_grad(lambda x: model(x).sum()), np.full(shape, 0.5, np.float32)
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient.shape == shape


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda size: map(np.int64, size)])
def test_sizes_of_any_sort(make):
    images = jnp.ones((1, 9, 12, 1))
    unet = UNetModel(1, 2, features=(4, 4), rngs=rngs())
    wide = ImageToImage(1, 1, features=4, blocks=1, rngs=rngs())
    for module in (unet, wide, ResizeConv(1, 2, rngs=rngs())):
        module.eval()
        for size in ((9, 12), (7, 20)):
            found, wanted = (
                traced(lambda module, size=given: module(images, size), module)
                for given in (make(size), size)
            )
            assert found == wanted
    assert resize(images, make((9, 12))) is images
    digits = DigitsCNN(make((9, 12)), 3, features=[4], hidden_features=4, rngs=rngs())
    assert nnx.eval_shape(lambda digits: digits(images), digits).shape == (1, 3)
    coder = Autoencoder(make((9, 12)), make((5, 6)), code=2, features=[4, 4], rngs=rngs())
    assert nnx.eval_shape(lambda coder: coder(images), coder).shape == (1, 5, 6, 1)
    assert count_regions(images[..., 0], make((3, 4))).shape == (1, 3, 4)


def test_look_up():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    table = jnp.asarray(rows)
    assert look_up(table, jnp.zeros((2, 0), jnp.int32)).shape == (2, 0, 3)
    np.testing.assert_array_equal(look_up(table, np.array([[4, 0]], np.uint8)), rows[[[4, 0]]])
    for wrong in (5, -1, 2**31):
        with pytest.raises(ValueError, match=r"words must lie in \[0, vocab_size\) = \[0, 5\)"):
            look_up(table, np.array([0, wrong]), "words")
    ids = jnp.array([1, 5, -1, 1])

    def value(table, ids):
        rows = look_up(table, ids)
        return jnp.where(jnp.isnan(rows), 0, rows).sum(), rows

    gradient, rows = jax.jit(jax.grad(value, has_aux=True))(table, ids)
    assert jnp.isnan(rows).all(1).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(gradient, np.array([[0], [2], [0], [0], [0]]) * np.ones(3))
