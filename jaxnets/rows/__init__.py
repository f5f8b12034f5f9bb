"""The gradient of any model, by rows for the tables that it looks rows up in."""

from jaxnets.rows.gradient import value_and_grad

__all__ = ["value_and_grad"]
