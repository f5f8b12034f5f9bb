"""Losses over the classes that a sampler drew, and over a batch's own."""
