"""Aggregation rules by hand, on updates short enough to compute on paper; limits, coalitions and bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steelyard.aggregation import RULES, make_defence
from steelyard.aggregation.base import Setting, Stateless, Verdict
from steelyard.aggregation.fedavg import fedavg
from steelyard.aggregation.round import JoinedRound, unpacked
from steelyard.errors import UserError
from steelyard.parsing import Positive
from steelyard.seeding import torch_generator

TABLES: dict[str, dict[str, Any]] = {name: {"name": name} for name in RULES} | {
    "fltrust": {"name": "fltrust", "root": 5},
    "nnm": {"name": "trimmed_mean", "pre": ["nnm"]},
    "bucketing": {"name": "median", "pre": [{"name": "bucketing", "size": 2}]},
}


def joined(
    table: dict[str, Any],
    updates: Sequence[Sequence[float]] | torch.Tensor,
    samples: Sequence[int] = (),
    *,
    trainable: int = 0,
    state: Any = None,
    members: Sequence[int] = (),
    number: int = 1,
    root: Sequence[float] = (),
    global_: Sequence[float] = (),
) -> JoinedRound:
    updates_nD = torch.tensor(updates) if not isinstance(updates, torch.Tensor) else updates
    n, d = updates_nD.shape
    clients = max((n, *(place + 1 for place in members)))
    defence = make_defence(table, clients)
    assert defence is not None
    p = trainable or d
    global_D = torch.tensor(global_) if global_ else torch.zeros(d)
    root_P = np.array(root, np.float32) if root else None
    if defence.rule.needs_root and root_P is None:
        root_P = np.ones(p, np.float32)
    return JoinedRound(
        defence=defence,
        state=defence.rule.start(clients, p) if state is None else state,
        setting=Setting(number=number, seed=3, clients=clients, global_P=global_D[:p].numpy(), root_P=root_P),
        global_D=global_D,
        updates=list(updates_nD),
        samples=samples or [1] * n,
        members=members or range(n),
    )


def random_updates(n: int, d: int = 40) -> torch.Tensor:
    return torch.randn(n, d, generator=torch_generator(1, "updates", n))


def step(round_: JoinedRound) -> list[float]:
    return [float(value) for value in round_.aggregate(round_.verdict())]


def test_the_mean_is_federated_averaging_bit_for_bit() -> None:
    updates, samples = random_updates(7, 1003), [3, 9, 4, 40, 1, 1, 12]
    global_ = torch.randn(1003, generator=torch_generator(1, "global")).tolist()
    round_ = joined({"name": "mean"}, updates, samples, global_=global_, trainable=1000)
    expected = fedavg(torch.tensor(global_), list(updates), samples)
    assert torch.equal(round_.aggregate(round_.verdict()), expected)
    pair = fedavg(torch.tensor(global_), [updates[1], updates[4]], [9, 1])
    assert torch.equal(round_.model([1, 4]), pair)


def test_norm_clipping_scales_what_is_too_long() -> None:
    round_ = joined({"name": "norm_clipping", "bound": 5.0}, [[3.0, 4.0], [6.0, 8.0]], [30, 10])
    verdict = round_.verdict()
    assert verdict is not None
    assert verdict.weights_n.tolist() == [0.75, 0.125], "the second has norm 10: half of its quarter is left"
    assert verdict.suspicion_n.tolist() == [1.0, 2.0]
    assert step(round_) == [3.0, 4.0]


def test_the_running_bound_is_the_median_of_earlier_medians() -> None:
    table = {"name": "norm_clipping", "window": 2}
    first = joined(table, [[1.0], [2.0], [6.0]])
    verdict = first.verdict()
    assert verdict is not None
    assert verdict.suspicion_n.tolist() == [0.5, 1.0, 3.0], "the first round takes its own median norm, 2"
    state = first.after(verdict)
    second = joined(table, [[8.0], [8.0], [8.0]], state=state)
    assert step(second) == pytest.approx([2.0])
    state = second.after(second.verdict())
    assert state["medians"].tolist() == [2.0, 8.0]
    assert step(joined(table, [[9.0]], state=state)) == pytest.approx([5.0])


def test_centred_clipping_pulls_towards_the_last_step() -> None:
    table = {"name": "centred_clipping", "tau": 2.0, "iterations": 1}
    round_ = joined(table, [[10.0], [1.0]], state={"centre": np.array([1.0], np.float32)})
    verdict = round_.verdict()
    assert verdict is not None
    assert step(round_) == [2.0], "1 + (2 + 0) / 2: the first was 9 away and counts as 2"
    assert verdict.suspicion_n.tolist() == [4.5, 0.0]
    assert round_.after(verdict)["centre"].tolist() == [2.0]


def test_the_median_takes_the_middle_of_each_coordinate() -> None:
    round_ = joined({"name": "median"}, [[1.0, 9.0], [2.0, 8.0], [50.0, 7.0]])
    assert step(round_) == [2.0, 8.0]
    verdict = round_.verdict()
    assert verdict is not None
    assert verdict.weights_n.tolist() == [0.0, 1.0, 0.0]
    assert verdict.suspicion_n.argmax() == 2
    assert step(joined({"name": "median"}, [[1.0], [2.0], [4.0], [9.0]])) == [3.0]


def test_the_trimmed_mean_cuts_both_ends() -> None:
    round_ = joined({"name": "trimmed_mean", "f": 1}, [[0.0, 5.0], [2.0, 1.0], [4.0, 2.0], [90.0, 3.0]])
    verdict = round_.verdict()
    assert verdict is not None
    assert step(round_) == [3.0, 2.5]
    assert verdict.weights_n.tolist() == [0.0, 0.25, 0.5, 0.25]
    assert verdict.suspicion_n.tolist() == [1.0, 0.0, -1.0, 0.0]


def test_the_geometric_median_of_three_on_a_line_is_the_middle_one() -> None:
    table = {"name": "geometric_median", "iterations": 200}
    assert step(joined(table, [[0.0, 0.0], [1.0, 1.0], [40.0, 40.0]])) == pytest.approx([1.0, 1.0], abs=1e-3)
    weighty = joined(table, [[0.0], [1.0], [40.0]], [1, 1, 5])
    assert step(weighty) == pytest.approx([40.0], abs=1e-2), "more than half of the samples decide"


def test_krum_takes_the_closest_to_its_neighbours_with_distances_squared_once() -> None:
    line = [[0.0], [1.0], [3.0], [4.5], [100.0]]
    round_ = joined({"name": "krum", "f": 1}, line)
    verdict = round_.verdict()
    assert verdict is not None
    # two neighbours each: 0: 1 + 9, 1: 1 + 4, 3: 2.25 + 4, 4.5: 2.25 + 12.25, 100: 95.5^2 + 97^2
    assert verdict.suspicion_n.tolist() == pytest.approx([v / 10 for v in (10, 5, 6.25, 14.5, 95.5**2 + 97**2)])
    assert step(round_) == [1.0]
    assert step(joined({"name": "multi_krum", "f": 1}, line)) == pytest.approx([8.5 / 4])
    assert step(joined({"name": "multi_krum", "f": 1, "keep": 2}, line)) == [2.0]


def test_bulyan_averages_around_the_median_of_the_picked() -> None:
    round_ = joined({"name": "bulyan", "f": 1}, [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [500.0]])
    verdict = round_.verdict()
    assert verdict is not None
    assert verdict.weights_n[6] == 0.0
    # five are picked of 0..5; three around their median are averaged
    assert 1.0 <= step(round_)[0] <= 4.0
    assert np.count_nonzero(verdict.weights_n) == 3


def test_nearest_neighbours_are_mixed_before_the_rule() -> None:
    round_ = joined({"name": "mean", "pre": [{"name": "nnm", "f": 1}]}, [[0.0], [1.0], [11.0]])
    verdict = round_.verdict()
    assert verdict is not None
    # rows: (0 + 1) / 2, (1 + 0) / 2, (11 + 1) / 2
    assert verdict.weights_n.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert step(round_) == pytest.approx([7 / 3])


def test_buckets_keep_the_rosters_order_in_a_coalition() -> None:
    table = {"name": "mean", "pre": [{"name": "bucketing", "size": 2}]}
    updates = [[float(10**k)] for k in range(5)]
    round_ = joined(table, updates)
    verdict = round_.verdict()
    assert verdict is not None
    assert sum(step(round_)) == pytest.approx(sum(10**k for k in range(5)) / 5), "buckets weigh by their samples"
    alone = joined(table, [updates[1], updates[3], updates[4]], members=[1, 3, 4])
    assert torch.equal(round_.model([1, 3, 4]), alone.model([0, 1, 2]))
    assert joined(table, updates, number=2).defence.steps[0].keeps_clients is False


def test_fools_gold_keeps_copies_from_counting_twice() -> None:
    updates = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.1, 1.0], [0.0, 0.1, 1.0]]
    round_ = joined({"name": "foolsgold"}, updates)
    verdict = round_.verdict()
    assert verdict is not None
    assert verdict.weights_n.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert verdict.suspicion_n[2:].tolist() == pytest.approx([1.0, 1.0])
    state = round_.after(verdict)
    assert np.array_equal(state["history"], np.array(updates, np.float32))
    later = joined({"name": "foolsgold"}, [[0.0, 1.0, 0.0]], state=state, members=[3]).verdict()
    assert later is not None
    assert later.weights_n.tolist() == [1.0], "alone nobody is a copy"


def test_fltrust_weighs_by_direction_and_lends_its_length() -> None:
    round_ = joined({"name": "fltrust", "root": 9}, [[4.0, 0.0], [3.0, 4.0], [-9.0, 0.0]], root=[5.0, 0.0])
    verdict = round_.verdict()
    assert verdict is not None
    assert verdict.suspicion_n.tolist() == pytest.approx([0.0, 0.4, 2.0])
    # trust 1 and 0.6 of directions (1, 0) and (0.6, 0.8), length 5
    assert step(round_) == pytest.approx([5 * (1 + 0.36) / 1.6, 5 * 0.48 / 1.6])


def test_flame_admits_the_majority_and_clips_it() -> None:
    updates = [[1.0, 0.0], [2.0, 0.1], [3.0, 0.0], [-1.0, 3.0]]
    verdict = joined({"name": "flame", "noise": 0.0}, updates).verdict()
    assert verdict is not None
    assert verdict.weights_n[3] == 0.0
    bound = np.median(np.linalg.norm(updates, axis=1))
    assert verdict.weights_n[:3].tolist() == pytest.approx([1 / 3, 1 / 3, bound / 3 / 3])
    noisy = [step(joined({"name": "flame", "noise": 1.0}, updates, number=number)) for number in (1, 1, 2)]
    assert noisy[0] == noisy[1] != noisy[2]


def test_dnc_drops_what_sticks_out() -> None:
    round_ = joined({"name": "dnc", "f": 1}, [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [40.0, 2.0]])
    assert step(round_) == pytest.approx([0.0, 2.0])
    many = joined({"name": "dnc", "f": 1, "coordinates": 4, "iterations": 3}, random_updates(7))
    verdict = many.verdict()
    assert verdict is not None
    assert 4 <= np.count_nonzero(verdict.weights_n) <= 6


def test_signguard_refuses_lengths_and_signs_that_are_unlike() -> None:
    same = torch.ones(5, 100) + 0.01 * torch.randn(5, 100, generator=torch_generator(2, "signs"))
    updates = torch.cat([same[:3], -same[3:4], 50 * same[4:]])
    verdict = joined({"name": "signguard", "part": 1.0}, torch.cat([updates, 1.1 * same])).verdict()
    assert verdict is not None
    assert (verdict.weights_n == 0).tolist() == [False] * 3 + [True] * 2 + [False] * 5
    assert verdict.suspicion_n[3] > 1 < verdict.suspicion_n[4]


def test_signguard_lets_all_pass_where_no_norm_is_usual() -> None:
    verdict = joined({"name": "signguard", "high": 1.5, "part": 1.0}, [[1.0, 1.0], [100.0, 100.0]]).verdict()
    assert verdict is not None
    assert verdict.weights_n == pytest.approx([0.5, 0.5 * 50.5 / 100])
    with pytest.raises(UserError, match=r"signguard: low <= 1 <= high expected .* low = 5, high = 3"):
        make_defence({"name": "signguard", "low": 5.0}, 10)


def test_fldetector_finds_the_one_that_does_not_follow_from_its_past() -> None:
    """Clients descend one quadratic, client 2 sends noise: D_k = target_k - w."""
    table: dict[str, Any] = {"name": "fldetector", "window": 4}
    targets = random_updates(6, 12)
    global_, state, verdict = torch.zeros(12), None, None
    for number in range(1, 9):
        updates = 0.3 * (targets - global_)
        updates[2] = torch.randn(12, generator=torch_generator(number, "noise"))
        round_ = joined(table, updates, state=state, number=number, global_=global_.tolist())
        verdict = round_.verdict()
        assert verdict is not None
        global_, state = round_.aggregate(verdict), round_.after(verdict)
        if number <= 2:
            assert verdict.suspicion_n.tolist() == pytest.approx([1.0] * 6), "nothing to predict from"
    assert verdict is not None
    assert verdict.suspicion_n.argmax() == 2
    assert verdict.weights_n.tolist() == [0.2, 0.2, 0.0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("name", TABLES)
def test_a_coalition_is_what_the_rule_makes_of_it_alone(name: str) -> None:
    """Bits depend on the mask alone: not on who asked before, nor on the process."""
    updates, samples = random_updates(8), [4, 9, 2, 7, 5, 5, 1, 8]
    round_ = joined(TABLES[name], updates, samples, trainable=30)
    masks = [(0, 3, 4, 6), (2,), (1, 7), tuple(range(8)), (0, 1, 2, 3, 5)]
    first = [round_.model(mask) for mask in masks]
    again = joined(TABLES[name], updates, samples, trainable=30)
    words, arrays = again.packed()
    other = unpacked(words, arrays, torch.zeros(40), list(updates), samples)
    for mask, model in reversed(list(zip(masks, first, strict=True))):
        assert torch.equal(again.model(mask), model)
        assert torch.equal(other.model(mask), model)
    assert torch.equal(round_.aggregate(round_.verdict()), first[3]), "all participants give the aggregate"
    mean = fedavg(torch.zeros(40), list(updates), samples)
    assert torch.equal(first[3][30:], mean[30:]), "normalization statistics are averaged, whatever the rule"
    assert torch.equal(round_.model([]), torch.zeros(40))


@pytest.mark.parametrize("name", TABLES)
def test_what_a_rule_says_is_finite_in_groups_of_any_size_and_of_equal_updates(name: str) -> None:
    for n in (1, 2, 3, 9):
        for updates in (random_updates(9)[:n], torch.ones(n, 40), torch.zeros(n, 40)):
            whole = torch.cat([updates, random_updates(9 - n)]) if n < 9 else updates
            round_ = joined(TABLES[name], whole)
            assert torch.isfinite(round_.model(range(n))).all(), (n, updates[0, 0])
            verdict = round_.verdict()
            assert verdict is not None
            for figure in (verdict.weights_n, verdict.suspicion_n, verdict.due_n):
                assert figure.shape == (9,)
                assert np.isfinite(figure).all()
            assert all(np.isfinite(array).all() or name == "norm_clipping" for array in round_.after(verdict).values())


@pytest.mark.parametrize("name", TABLES)
def test_no_client_can_make_a_rule_say_what_ends_the_run(name: str) -> None:
    most = float(np.finfo(np.float32).max)
    for signs in ([1.0] * 9, [1.0] * 5 + [-1.0] * 4, [1.0, -1.0] + [0.0] * 7):
        updates = torch.where(torch.tensor(signs)[:, None] == 0, random_updates(9), most * torch.tensor(signs)[:, None])
        round_ = joined(TABLES[name], updates)
        for places in (range(9), range(3)):
            with np.errstate(over="ignore"):  # flame's noise overflows the step, which no check asks to be finite
                assert len(round_.model(places)) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights_n": np.full(2, 0.5)},
            r"weights_n as an array of 3 numbers expected, one per update, got shape \(2,\)",
        ),
        ({"weights_n": [0.5, 0.5, 0.0]}, r"weights_n as an array of 3 numbers expected.* got list \[0.5, 0.5, 0.0\]"),
        ({"weights_n": np.array([0.5, np.nan, 0.5])}, "finite weights_n expected, got nan at place 1 of 3"),
        ({"suspicion_n": np.zeros(4)}, r"suspicion_n as an array of 3 numbers expected.* got shape \(4,\)"),
        ({"suspicion_n": np.array([0.0, 1.0, np.inf])}, "finite suspicion_n expected, got inf at place 2 of 3"),
        ({"due_n": np.ones((3, 1))}, r"due_n as an array of 3 numbers expected.* got shape \(3, 1\)"),
        (
            {"weights_n": np.array(["a", "b", "c"])},
            r"weights_n as an array of 3 numbers expected.* shape \(3,\) and <U1",
        ),
        ({"step_P": np.zeros(1, np.float32)}, r"step_P as an array of 2 numbers expected, got shape \(1,\)"),
    ],
)
def test_a_verdict_that_cannot_be_told_apart_by_client_is_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Stateless):
        def __init__(self, params: Any) -> None:
            pass

        def decide(self, state: Any, group: Any) -> Verdict:  # noqa: ARG002 - the same for every group of three
            fair: dict[str, Any] = {name: np.ones(3) / 3 for name in ("weights_n", "suspicion_n", "due_n")}
            return Verdict(**{**fair, **changes})

    monkeypatch.setitem(RULES, "own", (RULES["mean"][0], Own))
    with pytest.raises(UserError, match=rf"^\[defence\] own, round 4: {message}"):
        joined({"name": "own"}, [[1.0, 2.0]] * 3, number=4).verdict()


def test_a_rule_without_a_verdict_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Stateless):
        def __init__(self, params: Any) -> None:
            pass

        def decide(self, state: Any, group: Any) -> None:
            pass

    monkeypatch.setitem(RULES, "silent", (RULES["mean"][0], Silent))
    with pytest.raises(UserError, match=r"^\[defence\] silent, round 4: a Verdict expected from decide, got NoneType"):
        joined({"name": "silent"}, [[1.0, 2.0]] * 3, number=4).verdict()


def test_no_rule_can_touch_what_coalitions_are_joined_from() -> None:
    """A diagonal filled in place, as Krum's is in many programs, would be every coalition's."""
    rows = joined({"name": "krum"}, random_updates(9))._group.rows
    for shared in (rows.gram_nn, rows.take([0, 1]).gram_nn, rows._vectors[0]):
        with pytest.raises(ValueError, match="read-only"):
            shared[:] = 0


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("mean", "foolsgold")])
def test_a_far_update_is_the_most_suspicious(name: str) -> None:
    updates = 1 + 0.1 * random_updates(9)
    updates[4] = -30 * updates[4]
    verdict = joined(TABLES[name], updates, members=range(9)).verdict()
    assert verdict is not None
    assert verdict.suspicion_n.max() == verdict.suspicion_n[4]


@pytest.mark.parametrize(
    ("table", "clients", "message"),
    [
        ({"name": "krum", "f": 2}, 6, "N >= 2f [+] 3 expected, that is at least 7 updates for f = 2, got 6"),
        ({"name": "bulyan", "f": 2}, 10, "N >= 4f [+] 3 expected, that is at least 11"),
        ({"name": "trimmed_mean", "f": 5}, 10, "N >= 2f [+] 1"),
        ({"name": "median", "pre": [{"name": "nnm", "f": 5}]}, 10, "nnm: N >= 2f [+] 1"),
        ({"name": "krum", "f": 2, "pre": ["bucketing"]}, 10, "at least 7 updates for f = 2, got 5"),
        ({"name": "krumm"}, 10, "did you mean 'krum'"),
        ({"name": "krum", "g": 1}, 10, "unknown key 'g'"),
        ({"name": "krum", "pre": ["nm"]}, 10, "did you mean 'nnm'"),
        ({"name": "krum", "scoring": "median"}, 10, "'same_rule', 'mean' expected"),
        ({"pre": []}, 10, "key 'name' is missing"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(table: dict[str, Any], clients: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_defence(table, clients)


def test_without_a_table_there_is_no_defence() -> None:
    assert make_defence({}, 3) is None


def test_the_example_of_the_docs_is_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "defences.md").read_text(encoding="utf-8")
    code = text.rpartition("```python\n")[2].partition("```")[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    words: dict[str, Any] = {"dataclass": dataclass, "Positive": Positive, "Stateless": Stateless, "Verdict": Verdict}
    exec(f"from __future__ import annotations\n{code}", words)  # noqa: S102 - the lines that a reader copies
    words["HalvingParams"].__annotations__["times"] = Positive
    monkeypatch.setitem(RULES, "halving", (words["HalvingParams"], words["Halving"]))
    round_ = joined({"name": "halving", "times": 2}, [[4.0], [12.0]])
    assert step(round_) == [2.0]
    with pytest.raises(UserError, match="times: >= 1 expected"):
        make_defence({"name": "halving", "times": 0}, 2)
    for name in RULES:
        assert f"{name}" in text, "the table names every rule"


BYZFL = json.loads((Path(__file__).parents[1] / "data" / "defences" / "byzfl.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "table",
    [
        {"name": "mean"},
        {"name": "median"},
        {"name": "trimmed_mean", "f": 2},
        {"name": "geometric_median", "iterations": 2000},
        {"name": "krum", "f": 2, "neighbours": 8},
        {"name": "multi_krum", "f": 2, "neighbours": 8},
        {"name": "centred_clipping", "tau": 2.0, "iterations": 5},
    ],
    ids=lambda table: str(table["name"]),
)
def test_the_results_are_those_of_byzfl(table: dict[str, Any]) -> None:
    assert step(joined(table, BYZFL["vectors"])) == pytest.approx(BYZFL["results"][table["name"]], abs=2e-6)


def test_nearest_neighbour_mixing_is_that_of_byzfl() -> None:
    round_ = joined({"name": "median", "pre": [{"name": "nnm", "f": 2}]}, BYZFL["vectors"])
    assert step(round_) == pytest.approx(np.median(np.array(BYZFL["results"]["nnm"]), axis=0), abs=2e-6)
