"""The exact softmax loss over an output projection, tile by tile of the vocabulary."""
