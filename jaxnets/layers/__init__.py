"""flax.nnx modules: they hold parameters and call one kernel."""

from jaxnets.layers.output_projection import OutputProjection

__all__ = ["OutputProjection"]
