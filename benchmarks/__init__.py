"""The suite: what the kernels cost and what they reach, beside what people use today."""
