"""Gradients and tables by rows: a step costs the rows it touches, not the table."""
