"""How far a sampled softmax is from the exact one at its optimum: the bias of its gradient.

Where the logits are the logs of the classes' shares, the gradient of the exact loss is 0, averaged
over labels. That of a sampled loss, averaged over labels and over draws, is its bias. The average
over labels is taken exactly, each class with its share of the weight; that over draws has noise,
and the norm that a loss without any bias would have by it is the floor.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Suite, progress
from jaxnets.kernels import LogUniform, draw_samples, sampled_softmax_cross_entropy

CLASSES = 1_000
RUNS: dict[Suite, int] = {"quick": 200, "standard": 4_000, "full": 40_000}
_ALL = 8, 32, 128, 512
NUM_SAMPLED: dict[Suite, tuple[int, ...]] = {"quick": (8, 128), "standard": _ALL, "full": _ALL}
QUICK = (
    f"Estimators: {len(NUM_SAMPLED['quick'])} numbers of samples of {len(_ALL)}, "
    f"{RUNS['quick']} draws of {RUNS['standard']:,}."
)

#: Name: whether log Q is subtracted from the logits of the samples, and of the true class.
ESTIMATORS = {
    "no log Q": (False, False),
    "log Q of samples and true class": (True, True),
    "log Q of samples alone": (True, False),
}


def run(suite: Suite) -> list[dict]:
    """For each estimator and number of samples the norm of its bias, and the floor."""
    rows = []
    for num_sampled in NUM_SAMPLED[suite]:
        for name in ESTIMATORS:
            bias, floor = bias_of(name, num_sampled, RUNS[suite])
            rows.append(
                {"name": name, "num_sampled": num_sampled, "bias": bias, "noise_floor": floor}
            )
        progress(f"bias of the estimators with {num_sampled} samples")
    return rows


def bias_of(name: str, num_sampled: int, runs: int, classes: int = CLASSES) -> tuple[float, float]:
    """The sum over classes of the mean gradient's size, and what it is by noise alone.

    Shares by Zipf's law; distinct samples of :class:`LogUniform`, anew in each of the ``runs``.
    """
    total, squares = jax.tree.map(
        np.asarray, _moments(*ESTIMATORS[name], num_sampled, runs, classes, jax.random.key(0))
    )
    variance = np.maximum(squares / runs - (total / runs) ** 2, 0) / (runs - 1)
    # A normal number is sqrt(2 / pi) of its deviation in size, on average.
    return float(np.abs(total / runs).sum()), float(np.sqrt(2 / np.pi * variance).sum())


@partial(jax.jit, static_argnums=(2, 3, 4))
def _moments(
    of_samples: bool, of_true: bool, num_sampled: int, runs: int, classes: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum and sum of squares of the gradient by each class's logit, over ``runs`` draws.

    One program for all estimators: a log Q that is not to be subtracted is 0.
    """
    labels = jnp.arange(classes)
    share = 1 / (1 + labels.astype(jnp.float32))
    share /= share.sum()
    nothing = jnp.zeros((classes, 1))  # the logits are the bias

    def one(sums, key):
        samples = draw_samples(LogUniform(classes), key, num_sampled, labels)
        samples = samples._replace(
            log_expected_count=of_samples * samples.log_expected_count,
            labels_log_expected_count=of_true * samples.labels_log_expected_count,
        )

        def loss(logits):
            return sampled_softmax_cross_entropy(
                nothing, nothing, labels, samples, bias=logits, token_weights=share
            )

        gradient = jax.grad(loss)(jnp.log(share))
        return (sums[0] + gradient, sums[1] + gradient**2), None

    zeros = jnp.zeros(classes)
    return jax.lax.scan(one, (zeros, zeros), jax.random.split(key, runs))[0]
