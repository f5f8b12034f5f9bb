"""1x1 convolution as a matmul over channels, with its epilogue and its own backward."""
