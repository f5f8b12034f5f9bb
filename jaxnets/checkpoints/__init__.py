"""Checkpoints of a training run, by Orbax: named, hashed and locked."""

from jaxnets.checkpoints.store import Checkpoints

__all__ = ["Checkpoints"]
