"""Losses with the bias in a place of its own, where ``jax.grad`` finds it by number."""


def with_bias(loss):
    """``loss(hidden, weight, labels, ..., bias=)`` as ``(hidden, weight, bias, labels, ...)``."""

    def placed(hidden, weight, bias, *rest, **options):
        return loss(hidden, weight, *rest, bias=bias, **options)

    return placed
