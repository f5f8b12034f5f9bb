"""Samplers of negative classes, and how often each class is expected among what they draw."""
