"""JAX kernels and Flax modules for very large output layers and very long sequences."""
