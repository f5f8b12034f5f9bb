"""One of two processes with four devices each: run by ``test_two_processes.py``."""

import sys

import jax


def main(address: str, number: int) -> None:
    """Prints the largest relative differences from the equations, of a loss and a step by rows."""
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    import numpy as np
    from jax.sharding import AxisType, NamedSharding

    from jaxnets import optim
    from jaxnets.kernels import (
        VocabSharding,
        linear_softmax_cross_entropy,
    )
    from tests.exact_loss import exact_loss
    from tests.fixed_samples import fixed_samples
    from tests.sampled_losses import sampled_loss
    from tests.sharding.row_steps import sharded_row_step

    assert jax.device_count() == 8
    assert jax.process_count() == 2
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    # The vocabulary across both processes, so that its sums go over the wire.
    sharding = VocabSharding(mesh, ("data", "vocab"))
    vocab_size, features, tokens = 1600, 24, 16

    def normal(seed, *shape):
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    def split(array, spec):
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: array[index]
        )

    hidden, weight, bias = (
        normal(0, tokens, features),
        normal(1, vocab_size, features),
        normal(2, vocab_size),
    )
    labels = np.arange(tokens, dtype=np.int32) * 97 % vocab_size
    placed = (
        split(hidden, sharding.token_spec),
        split(weight, sharding.table_spec),
        split(bias, sharding.table_spec),
        split(labels, sharding.token_spec),
    )

    def difference(got, wanted):
        worst = 0.0
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            b = np.asarray(b)
            for shard in a.addressable_shards:
                part = np.abs(np.asarray(shard.data) - b[shard.index]).max()
                worst = max(worst, float(part / max(np.abs(b).max(), 1e-3)))
        return worst

    def sharded(hidden, weight, bias, labels):
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, sharding=sharding)

    got = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(*placed)
    losses, _, backward = exact_loss(hidden, weight, labels, bias)
    exact = difference(got, (losses.mean(), backward(1 / tokens)[:3]))

    samples = fixed_samples(vocab_size, labels, np.arange(48) * 33)
    losses, backward = sampled_loss("softmax", hidden, weight, labels, samples, bias)
    sums = [0.1 + gradient**2 for gradient in backward(1 / tokens)[1:]]
    moved = [
        array - 0.1 * gradient / np.sqrt(own + 1e-7)
        for array, gradient, own in zip((weight, bias), backward(1 / tokens)[1:], sums, strict=True)
    ]
    optimizer = optim.adagrad(0.1)
    split_tables = {"weight": placed[1], "bias": placed[2]}
    state = jax.jit(lambda tables: optim.sharded_init(sharding, optimizer, tables))(split_tables)
    everywhere = jax.tree.map(lambda a: split(np.asarray(a), jax.P()), samples)
    step = jax.jit(lambda *a: sharded_row_step(sharding, optimizer, *a))
    value, tables, state = step(split_tables, state, placed[0], placed[3], everywhere)
    of_bias, of_weight = (arrays["sum"] for arrays in state.tables)  # in the names' order
    got = value, tables["weight"], tables["bias"], of_weight, of_bias
    rows = difference(got, (losses.mean(), *moved, *sums))
    print("differences", exact, rows, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
