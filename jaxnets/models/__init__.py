"""Whole networks built of the layers, each with an example that trains it on real data."""

from jaxnets.models.autoencoder import Autoencoder
from jaxnets.models.decoding import BeamSearch, beam_search, greedy_search
from jaxnets.models.digits import DigitsCNN
from jaxnets.models.discogan import DiscoGAN
from jaxnets.models.ecg import ECGClassifier
from jaxnets.models.image_to_image import ImageToImage
from jaxnets.models.sdcnet import CountRegressor, SDCNet
from jaxnets.models.seq2seq import TENSORFLOW_TUTORIAL, Seq2Seq, Seq2SeqConfig
from jaxnets.models.session import SessionGRU, next_items
from jaxnets.models.timeseries import TimeSeriesLSTM
from jaxnets.models.unet import UNet

__all__ = [
    "TENSORFLOW_TUTORIAL", "Autoencoder", "BeamSearch", "CountRegressor", "DigitsCNN", "DiscoGAN",
    "ECGClassifier", "ImageToImage", "SDCNet", "Seq2Seq", "Seq2SeqConfig", "SessionGRU",
    "TimeSeriesLSTM", "UNet", "beam_search", "greedy_search", "next_items",
]  # fmt: skip
