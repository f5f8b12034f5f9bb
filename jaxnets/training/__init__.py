"""One training loop: a jitted step over any flax.nnx module, evaluated, saved and resumed."""

from jaxnets.training.loop import Result, fit
from jaxnets.training.step import clip_by_norm

__all__ = ["Result", "clip_by_norm", "fit"]
