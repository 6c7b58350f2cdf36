"""Decoders: latents and labels to images, trained in seconds on one core.

They belong to the trunk because a white-box study needs the very decoder that an attacking client trains. They know
nothing of rounds, models or attacks.
"""

from steelyard.generators.cache import cached_decoder
from steelyard.generators.decoder import Decoder
from steelyard.generators.training import DecoderParams, train_decoder

__all__ = ["Decoder", "DecoderParams", "cached_decoder", "train_decoder"]
