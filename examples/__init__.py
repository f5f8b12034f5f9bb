"""Runnable examples, one a model, on real data: python -m examples.NAME."""
