import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from examples.sdcnet import dots
from jaxnets.models import CountRegressor, SDCNet
from jaxnets.models.sdcnet import DOTS, Intervals, count_regions
from jaxnets.training import fit

pytestmark = pytest.mark.usefixtures("cheap_parameters")

SMALL = {"features": (4, 4, 8), "hidden_features": 16}  # regions of 16 by 16


def test_every_count_is_nearest_to_its_own_class():
    counts = jnp.asarray(np.arange(31, dtype=np.float32))
    values = DOTS.values()[DOTS.classes(counts)]
    np.testing.assert_array_equal(values[:11], counts[:11])
    assert np.abs(values - counts)[:21].max() <= 0.5
    assert (values[21:] == 20).all()


def test_merging_is_the_papers_equation():
    model = SDCNet(rngs=nnx.Rngs(0), **SMALL)
    images = np.random.default_rng(0).normal(size=(2, 16, 32, 1)).astype(np.float32)
    levels, total = nnx.jit(lambda model, images: (model(images), model.total(images)))(
        model, images
    )
    merged = np.asarray(levels.counts[0])
    for decision, count in zip(levels.decisions, levels.counts[1:], strict=True):
        share = np.kron(merged, np.ones((1, 2, 2))) / 4
        merged = (1 - np.asarray(decision)) * share + np.asarray(decision) * np.asarray(count)
    np.testing.assert_allclose(levels.merged[-1], merged, rtol=1e-6)
    np.testing.assert_allclose(total, merged.sum((1, 2)), rtol=1e-5)


def test_a_region_counts_the_same_in_a_larger_image():
    """Far from its edges: the heads slide, whatever the image's size."""
    model = CountRegressor(rngs=nnx.Rngs(0), **SMALL)
    image = np.zeros((1, 80, 80, 1), np.float32)
    image[0, 35:45, 35:45] = 1
    counts = nnx.jit(lambda model, image: model.head(model.encoder(image)[-1]))
    whole = counts(model, image)[0, 2, 2]
    part = counts(model, image[:, 16:64, 16:64])[0, 1, 1]
    np.testing.assert_allclose(whole, part, rtol=1e-4)


def test_count_regions():
    _, centres = dots(np.random.default_rng(0), 64, 20)
    grid = count_regions(jnp.asarray(centres[None]), (4, 4))
    assert float(grid[0, 1, 2]) == centres[16:32, 32:48].sum()
    with pytest.raises(ValueError, match="grid must divide the image"):
        count_regions(jnp.zeros((1, 10, 10)), (3, 3))


def test_learns_to_count():
    """Better than the mean of the counts, by far."""

    def quarters(image):
        return image.reshape(2, 32, 2, 32).swapaxes(1, 2).reshape(4, 32, 32)

    def batch_at(step):
        image, centres = dots(np.random.default_rng((1, step)), 64, 10)
        return quarters(image)[..., None], quarters(centres)

    model = SDCNet(features=(8, 16), hidden_features=16, divisions=1, rngs=nnx.Rngs(0))
    fit(
        model, lambda model, batch, key: model.loss(*batch), batch_at, 100,
        optimizer=optax.flatten(optax.adam(optax.linear_schedule(1e-2, 0, 100))),
        key=jax.random.key(0), console=Console(quiet=True),
    )  # fmt: skip
    model.eval()
    images, centres = (
        np.concatenate(part) for part in zip(*map(batch_at, range(901, 917)), strict=True)
    )
    true = centres.sum((1, 2))
    total = nnx.jit(lambda model, images: model.total(images))(model, images)
    error = np.abs(np.asarray(total) - true).mean()
    assert error < np.abs(true - true.mean()).mean() / 2


def test_bad_input():
    model = SDCNet(rngs=nnx.Rngs(0), **SMALL)
    with pytest.raises(ValueError, match="both sides multiples of 16"):
        model(jnp.zeros((1, 24, 16, 1)))
    with pytest.raises(ValueError, match="divisions must lie in"):
        SDCNet(divisions=3, rngs=nnx.Rngs(0), **SMALL)
    assert Intervals((0.0, 1.0)).values().tolist() == [0.0, 1.0, 1.0]
