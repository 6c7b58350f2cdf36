"""Decoders: latents and labels to images, trained in seconds on one core.

They belong to the trunk because a white-box study needs the very decoder that an attacking client trains. They know
nothing of rounds, models or attacks.
"""

from steelyard.generators.cache import cached_decoder
from steelyard.generators.conv_vae import ConvVaeParams
from steelyard.generators.dcgan import DcganParams
from steelyard.generators.decoder import Decoder
from steelyard.generators.kinds import KINDS, DecoderParams, decoder_params
from steelyard.generators.mlp import MlpParams
from steelyard.generators.training import train_decoder, train_with_losses

__all__ = [
    "KINDS",
    "ConvVaeParams",
    "DcganParams",
    "Decoder",
    "DecoderParams",
    "MlpParams",
    "cached_decoder",
    "decoder_params",
    "train_decoder",
    "train_with_losses",
]
