"""The decoder that was trained beforehand and handed to this client, held to the digest that its half names."""

from __future__ import annotations

from client.attacks.base import Resources
from steelyard.decoder_store import ROLE_FILE, verify
from steelyard.errors import BadBundleError, UserError
from steelyard.generators import Decoder


def handed_decoder(resources: Resources, sha256: str, *, unseen: bool) -> Decoder:
    """Load it.

    Args:
        resources: what the client has.
        sha256: of the decoder's file, in hex.
        unseen: whether the attack withholds samples that its decoder must not have seen.

    Raises:
        UserError: there is none, it is another or damaged, not made for this client's images, or has seen too much.
    """
    if resources.decoder is None or not resources.decoder.is_file():
        raise UserError(f"[attack] decoder_sha256: {ROLE_FILE} expected in the role folder; run `steelyard prepare`")
    if unseen:
        raise UserError(
            '[attack] reference = "own" withholds samples from the decoder, which one trained beforehand on the whole '
            "shard has seen; leave out decoder_sha256 or choose another reference"
        )
    verify(resources.decoder, sha256)
    try:
        decoder = Decoder.load(resources.decoder)
    except BadBundleError as error:
        raise UserError(f"[attack] decoder_sha256: a decoder expected: {error}") from None
    if decoder.shape != resources.shape:
        raise UserError(f"[attack] decoder_sha256: a decoder for {resources.shape} expected, got {decoder.shape}")
    return decoder
