"""Losses over an output projection: exact and tiled, or sampled."""
