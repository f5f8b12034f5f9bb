"""One training loop: a jitted step over any flax.nnx module, evaluated, saved and resumed."""

from jaxnets.training.loop import Result, fit

__all__ = ["Result", "fit"]
