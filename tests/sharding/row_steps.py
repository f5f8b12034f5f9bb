"""A step by rows of tables that are split, for the tests and the processes that they start."""

import jax

from jaxnets import optim
from jaxnets.kernels import SparseRows, gather_rows, sampled_softmax_cross_entropy


def row_gradients(tables, hidden, labels, samples, sharding=None):
    """The loss, and its gradient by rows: on one device, or on all of a sharding's."""
    ids, rows, local = gather_rows(
        tables, {"labels": labels, "samples": samples.ids}, sharding=sharding
    )
    on_rows = sharding and sharding._replace(vocab_axis=None)

    def loss(rows):
        return sampled_softmax_cross_entropy(
            hidden, rows["weight"], local["labels"],
            samples._replace(ids=local["samples"]), bias=rows["bias"], sharding=on_rows
        )  # fmt: skip

    value, gradient = jax.value_and_grad(loss)(rows)
    return value, {name: SparseRows(ids, values) for name, values in gradient.items()}


def sharded_row_step(sharding, optimizer, tables, state, *arrays):
    """A step on all devices."""
    value, gradients = row_gradients(tables, *arrays, sharding=sharding)
    return value, *optim.sharded_update(sharding, optimizer, gradients, state, tables)
