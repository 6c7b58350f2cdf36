"""What an attacking client does; one file per attack, one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from client.attacks.ace import Ace, AceParams
from client.attacks.alie import Alie, AlieParams
from client.attacks.base import Attack, Resources, Result
from client.attacks.decoder_samples import DecoderSamples, DecoderSamplesParams
from client.attacks.free_rider import FreeRider, FreeRiderParams
from client.attacks.honest import Honest, HonestParams
from client.attacks.ipm import Ipm, IpmParams
from client.attacks.label_flip import LabelFlip, LabelFlipParams
from client.attacks.latent import Latent, LatentParams
from client.attacks.outlier import Outlier, OutlierParams
from client.attacks.own_repeat import OwnRepeat, OwnRepeatParams
from client.attacks.public_honest import PublicHonest, PublicHonestParams
from client.attacks.random_noise import RandomNoise, RandomNoiseParams
from client.attacks.real_samples import RealSamples, RealSamplesParams
from client.attacks.scaling import Scaling, ScalingParams
from client.attacks.self_promotion import SelfPromotion, SelfPromotionParams
from client.attacks.shadow import Shadow, ShadowParams
from client.attacks.sign_flip import SignFlip, SignFlipParams
from client.attacks.sybil import Sybil, SybilParams
from steelyard.errors import UserError
from steelyard.parsing import choose, parse

__all__ = ["ATTACKS", "Attack", "Resources", "Result", "check", "make_attack"]

ATTACKS: dict[str, tuple[Callable[[Any, Resources], Attack], type[Any]]] = {
    "honest": (Honest, HonestParams),
    "latent": (Latent, LatentParams),
    "decoder_samples": (DecoderSamples, DecoderSamplesParams),
    "label_flip": (LabelFlip, LabelFlipParams),
    "random_noise": (RandomNoise, RandomNoiseParams),
    "free_rider": (FreeRider, FreeRiderParams),
    "own_repeat": (OwnRepeat, OwnRepeatParams),
    "real_samples": (RealSamples, RealSamplesParams),
    "public_honest": (PublicHonest, PublicHonestParams),
    "shadow": (Shadow, ShadowParams),
    "outlier": (Outlier, OutlierParams),
    "ace": (Ace, AceParams),
    "self_promotion": (SelfPromotion, SelfPromotionParams),
    "scaling": (Scaling, ScalingParams),
    "sign_flip": (SignFlip, SignFlipParams),
    "alie": (Alie, AlieParams),
    "ipm": (Ipm, IpmParams),
    "sybil": (Sybil, SybilParams),
}


def check(table: Mapping[str, Any], *, public: bool, colludes: bool = False) -> Any:
    """Check an attack's table, without data; returns its parameters.

    Args:
        table: its name and parameters.
        public: whether the experiment hands the attacker the public set.
        colludes: whether it hands it its allies' shards.

    Raises:
        UserError: an unknown attack or key, a value out of range, a parameter that needs the public set without it, or
            an attack that needs allies without them.
    """
    name = table.get("name")
    if not isinstance(name, str):
        raise UserError(f"[attack] name: one of {', '.join(ATTACKS)} expected, got {name!r}")
    _, kind = choose(name, ATTACKS, "attack")
    params = parse(kind, {key: value for key, value in table.items() if key != "name"}, f"[attack] {name}")
    if not public:
        for key, value in vars(params).items():
            if value == "public":
                raise UserError(f'[attack] {name} {key} = "public" needs the public set; declare knowledge = "public"')
    if getattr(params, "NEEDS_ALLIES", False) and not colludes:
        raise UserError(f"[attack] {name} needs allies; set collude = true and name two clients or more")
    return params


def make_attack(table: Mapping[str, Any], resources: Resources) -> Attack:
    """The attack that a table describes, e.g. {"name": "latent", "samples": 32}.

    Raises:
        UserError: a mistake in the table, or data that it asks for and the client lacks.
    """
    params = check(table, public=resources.public is not None, colludes=bool(resources.allies))
    factory, _ = ATTACKS[table["name"]]
    return factory(params, resources)
