"""Recurrent layers: LSTM and GRU, in chunks of time, with gradients of their own."""
