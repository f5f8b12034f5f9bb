"""JAX kernels and Flax modules for very large output layers and very long sequences."""

# The one place of the version: the build reads it here, without importing.
__version__ = "0.1.0"
