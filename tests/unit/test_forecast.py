"""What the doctor says about how long scoring will take."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from deploy.prepare import server_half
from scripts.doctor import _scoring, duration
from server.forecast import forecast
from steelyard.aggregation import RULES
from steelyard.aggregation.base import Group, State, Verdict
from steelyard.aggregation.mean import Mean
from steelyard.config import ClientsConfig, DataConfig, Experiment, RosterEntry, ScoringConfig, ServerHalf, Shape
from steelyard.data.deal import deal

FEDSV = {"name": "fedsv", "kind": "fedsv", "utility": "loss"}
SHAPLEY = {"name": "shapley", "kind": "shapley", "utility": "loss"}
LOO = {"name": "loo", "kind": "loo", "utility": "accuracy"}
ONE_ROUND = {"name": "one_round", "kind": "one_round", "utility": "loss"}  # another game: it shares nothing
CGSV = {"name": "cgsv", "kind": "cgsv", "utility": "loss"}


def experiment(*evaluators: dict[str, Any], workers: int = 1) -> Experiment:
    return Experiment(
        name="forecast",
        rounds=3,
        data=DataConfig(samples_per_client=20, validation=60, test=10),
        clients=ClientsConfig(count=4),
        scoring=ScoringConfig(inner_batch=30, workers=workers),
        evaluators=evaluators,
    )


def half(*evaluators: dict[str, Any]) -> ServerHalf:
    shape = Shape(channels=1, height=8, width=8, classes=10)
    return server_half(experiment(*evaluators), shape, tuple(RosterEntry(client=k, samples=1) for k in range(4)))


@pytest.mark.parametrize(
    ("evaluators", "coalitions"),
    [((FEDSV,), 16), ((LOO,), 5), ((LOO, CGSV), 5), ((FEDSV, LOO), 16), ((CGSV,), 0), ((FEDSV, ONE_ROUND), 32)],
)
def test_it_counts_what_a_round_can_ask_for(evaluators: tuple[dict[str, Any], ...], coalitions: int) -> None:
    found = forecast(half(*evaluators), 60)
    assert found["coalitions"] == coalitions
    assert (found["seconds"] > 0) == (coalitions > 0)


def test_more_examples_take_longer() -> None:
    few, many = (forecast(half(FEDSV), examples)["seconds"] for examples in (60, 60_000))
    assert many > 10 * few


def test_the_doctor_says_it_in_one_line() -> None:
    """Each forecast by a process of its own that loads torch, so side by side."""
    asked = [experiment(FEDSV), experiment(CGSV), experiment({**SHAPLEY, "seconds": 1.0})]
    with ThreadPoolExecutor(len(asked)) as pool:
        line, nothing, cut_short = pool.map(functools.partial(_scoring, dealt=deal(asked[0])), asked)
    assert line.startswith("up to 16 coalitions a round of about ")
    assert line.endswith(" in 3 rounds"), "nobody attacks, so there is no twin"
    assert nothing == "no evaluator asks for coalitions"
    assert cut_short.endswith(", less where an evaluator's `seconds` end it")


class Slow(Mean):
    """A rule that takes 0.3 s to join anything, and counts how often it did."""

    joined = 0

    def decide(self, state: State, group: Group) -> Verdict:
        Slow.joined += 1
        time.sleep(0.3)
        return super().decide(state, group)


def test_a_rule_that_joins_coalitions_is_timed_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "slow", (RULES["mean"][0], Slow))
    asked = replace(half(FEDSV), defence={"name": "slow"})
    monkeypatch.setattr(Slow, "joined", 0)
    batches = 3000 / asked.scoring.inner_batch
    assert 0.3 < forecast(asked, 3000)["seconds"] < 0.3 * batches, "whatever the number of its inner batches"
    often = Slow.joined
    forecast(asked, 60)
    assert Slow.joined == 2 * often > 0
    forecast(replace(asked, defence={"name": "slow", "scoring": "mean"}), 60)
    assert Slow.joined == 2 * often, "coalitions are joined by the mean"


@pytest.mark.parametrize("name", sorted(RULES))
def test_it_can_time_every_rule(name: str) -> None:
    clients = tuple(RosterEntry(client=k, samples=1) for k in range(12))
    asked = replace(half(LOO), roster=clients, defence={"name": name, "root": 10})
    assert forecast(asked, 60)["seconds"] > 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.00234, "2.3 ms"),
        (1.0, "1 s"),
        (119.0, "120 s"),
        (121.0, "2 minutes"),
        (7150.0, "120 minutes"),
        (7300.0, "2 hours"),
        (86400.0, "24 hours"),
        (1e6, "12 days"),
    ],
)
def test_durations_are_in_a_persons_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
