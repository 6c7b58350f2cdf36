"""Which decoder trained beforehand an experiment's attackers may be handed: the boundary of what they know. Torch-free.

A decoder carries its training data with it. So it must be made of what the attacker has by the experiment's own
declaration, and of nothing else: its own shard in this very deal, or this very deal's public set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steelyard.config import Experiment
from steelyard.data.deal import Deal, deal
from steelyard.decoder_store import Provenance, data_digest, find, read_provenance, store_folder
from steelyard.errors import UserError


def check_decoder(experiment: Experiment) -> None:
    """Have the user's mistakes about a decoder told before anything runs.

    Raises:
        UserError: as `allowed_decoder`.
    """
    if experiment.attack.get("decoder_sha256"):
        allowed_decoder(experiment, deal(experiment))


def allowed_decoder(experiment: Experiment, dealt: Deal) -> Path | None:
    """The stored decoder that the attackers are handed; None: the experiment names none.

    Raises:
        UserError: there is no such decoder, it is damaged, not what the experiment says, or made of data that the
            declared knowledge does not cover.
    """
    sha256 = experiment.attack.get("decoder_sha256", "")
    if not isinstance(sha256, str):
        raise UserError(f"[attack] decoder_sha256: a string expected, got {sha256!r}")
    if not sha256:
        return None
    path = find(sha256, store_folder())
    made_of = read_provenance(path)
    _check_settings(experiment, made_of)
    _check_knowledge(experiment, made_of, dealt)
    return path


def _check_settings(experiment: Experiment, made_of: Provenance) -> None:
    """What the experiment says of its decoder must hold for this one."""
    source = experiment.attack.get("decoder_source", "own")
    if source != made_of.source:
        raise UserError(
            f"[attack] decoder_sha256: a decoder of decoder_source = {source!r} expected, this one's source is "
            f"{made_of.source!r}"
        )
    table = experiment.attack.get("decoder", {})
    if not isinstance(table, Mapping):
        raise UserError(f"[attack] decoder: a table expected, got {table!r}")
    for key, value in table.items():
        if made_of.params.get(key) != value:
            raise UserError(
                f"[attack.decoder] {key}: {made_of.params.get(key)!r} expected, as decoder_sha256 was trained, got "
                f"{value!r}; train another or leave the key out"
            )


def _check_knowledge(experiment: Experiment, made_of: Provenance, dealt: Deal) -> None:
    """The decoder's data must be the attacker's, to the byte: another deal's sets overlap this one's."""
    if made_of.source == "public":
        if experiment.attack.get("knowledge") != "public":
            raise UserError('[attack] decoder_sha256: a decoder of the public set needs knowledge = "public"')
        data, whose = dealt.public, "public set"
    else:
        if experiment.attackers != (made_of.client,):
            raise UserError(
                f"[attack] decoder_sha256: made of client {made_of.client}'s shard, so clients = [{made_of.client}] "
                f"expected, got {list(experiment.attackers)}"
            )
        data, whose = dealt.shards[made_of.client], f"shard of client {made_of.client}"
    if data_digest(data.images, data.labels) != made_of.data_sha256:
        raise UserError(
            f"[attack] decoder_sha256: made of this deal's {whose} expected, it is of another deal "
            f"({made_of.dataset}, {made_of.samples} samples, partition seed {made_of.partition_seed}); train one with "
            "`steelyard decoder train`"
        )
