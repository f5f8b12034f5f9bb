"""Whole networks built of the layers, each with an example that trains it on real data."""

from jaxnets.models.decoding import beam_search, greedy_search
from jaxnets.models.seq2seq import TENSORFLOW_TUTORIAL, Seq2Seq, Seq2SeqConfig

__all__ = ["TENSORFLOW_TUTORIAL", "Seq2Seq", "Seq2SeqConfig", "beam_search", "greedy_search"]
