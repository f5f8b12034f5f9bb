"""Pallas kernels that several operations share; they run on GPU (Triton) and TPU (Mosaic)."""
