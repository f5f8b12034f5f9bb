"""One of two processes with four devices each: run by ``test_two_processes.py``."""

import sys

import jax


def main(address: str, number: int) -> None:
    """Prints the largest relative differences from one device, of two steps of training."""
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding

    from jaxnets import optim
    from jaxnets.kernels import (
        LogUniform,
        VocabSharding,
        draw_samples,
        linear_softmax_cross_entropy,
    )
    from tests.sharding.test_sharded import row_step, sharded_row_step

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

    def single(hidden, weight, bias):
        return linear_softmax_cross_entropy(hidden, weight, jnp.asarray(labels), bias=bias)

    got = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(*placed)
    wanted = jax.jit(jax.value_and_grad(single, (0, 1, 2)))(
        *map(jnp.asarray, (hidden, weight, bias))
    )
    exact = difference(got, wanted)

    optimizer = optim.adagrad(0.1)
    tables = {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    draw = jax.jit(lambda key, labels: draw_samples(LogUniform(vocab_size), key, 48, labels))
    samples = draw(jax.random.key(5), labels)
    one = jax.jit(lambda *arrays: row_step(optimizer, *arrays))
    wanted = one(tables, optimizer.init(tables), hidden, labels, samples)
    split_tables = {"weight": placed[1], "bias": placed[2]}
    state = jax.jit(lambda tables: optim.sharded_init(sharding, optimizer, tables))(split_tables)
    everywhere = jax.tree.map(lambda a: split(np.asarray(a), jax.P()), samples)
    step = jax.jit(lambda *a: sharded_row_step(sharding, optimizer, *a))
    got = step(split_tables, state, placed[0], placed[3], everywhere)
    print("differences", exact, difference(got, wanted), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
