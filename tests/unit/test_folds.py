"""Evaluators that see whole rounds: numbers by hand, and recorded rounds scored alone, together, resumed: same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from deploy.prepare import prepare, server_folder
from steelyard import bundle
from steelyard.aggregation.fedavg import fedavg
from steelyard.bundle import read_arrays
from steelyard.config import Experiment, ServerHalf, Shape, load_half
from steelyard.models import FlatModel
from steelyard.parsing import parse
from steelyard.recording import ClosedRound, Recordings
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import EVALUATORS, make_evaluators
from steelyard.scoring.evaluators.base import Fold, Scores
from steelyard.scoring.evaluators.chg_shapley import closed_form
from steelyard.scoring.evaluators.comfedsv import complete
from steelyard.scoring.evaluators.fedsv import shapley_coefficients
from steelyard.scoring.evaluators.running import advance, nothing_yet
from steelyard.scoring.games import TableGame
from steelyard.scoring.gradient import validation_gradient
from steelyard.scoring.replay import RoundScorer
from steelyard.seeding import numpy_generator

ROUNDS, CLIENTS = 4, 4


@dataclass
class Fake:
    """A round of vectors and a table: all that a fold looks at, by hand."""

    updates_nD: tuple[np.ndarray, ...]
    members: tuple[int, ...]
    samples: tuple[int, ...]
    number: int = 1
    last: bool = False
    table: Floats | None = None
    gradient: Floats | None = None
    played: list[Any] | None = None

    def __post_init__(self) -> None:
        self.clients = len(self.samples)
        self.trainable = len(self.updates_nD[0]) if self.updates_nD else 0
        self.global_D = np.zeros(self.trainable, np.float32)

    def view(self, metric: str) -> TableGame:  # noqa: ARG002
        return TableGame(np.zeros(2 ** len(self.members)) if self.table is None else self.table)

    def last_layer(self, vector_P: np.ndarray) -> np.ndarray:
        return vector_P.reshape(2, -1)

    def validation_gradient(self) -> Floats:
        assert self.gradient is not None
        return self.gradient


def fold_rounds(kind: str, rounds: list[Fake], **params: Any) -> Floats:
    """The rows of a fold over some rounds, [rounds, N]."""
    fold = make_evaluators([{"name": "e", "kind": kind, "utility": "accuracy", **params}])[0].evaluator
    assert isinstance(fold, Fold)
    state, rows = fold.start(rounds[0].clients), []
    for round_ in rounds:
        state, scores = fold.fold(state, round_, np.random.default_rng(0))  # type: ignore[arg-type]
        rows.append(scores.value)
    return np.array(rows)


def fold_totals(kind: str, rounds: list[Fake], seed: int = 0, **params: Any) -> tuple[Floats, Floats, int, bool]:
    """Totals and their standard errors [N], a round's most calls, and `converged` of the last one."""
    fold = make_evaluators([{"name": "e", "kind": kind, "utility": "accuracy", **params}])[0].evaluator
    assert isinstance(fold, Fold)
    state, generator, found = fold.start(rounds[0].clients), np.random.default_rng(seed), []
    for round_ in rounds:
        state, scores = fold.fold(state, round_, generator)  # type: ignore[arg-type]
        found.append(scores)
    return state["value"], state["std_error"], max(s.calls for s in found), found[-1].converged


def vectors(*rows: list[float]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(row, np.float32) for row in rows)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_cgsv_by_hand() -> None:
    """Unit updates (1, 0) and (0, 1), equal samples: both are at 45 degrees to the mean. The third is absent."""
    round_ = Fake(vectors([3, 0], [0, 0.5]), (0, 2), (10, 10, 10))
    rows = fold_rounds("cgsv", [round_, round_])
    first = 0.05 * np.sqrt(0.5)
    np.testing.assert_allclose(rows[0], [first, 0, first])
    np.testing.assert_allclose(rows.sum(axis=0), [0.95 * first + first, 0, 0.95 * first + first])


def test_shapfed_by_hand() -> None:
    """Two classes of two weights: client 0 agrees with the mean on the first class, opposes it on the second."""
    round_ = Fake(vectors([1, 0, 0, -1], [1, 0, 0, 3]), (0, 1), (5, 5))
    np.testing.assert_allclose(fold_rounds("shapfed", [round_])[0], [(1 - 1) / 2, (1 + 1) / 2])


def test_fedce_by_hand() -> None:
    """Orthogonal updates: novelty 1 for both; V without 0 is 0.5, without 1 is 0.75. Then parallel: the mean is 1/2."""
    table = np.array([0.0, 0.75, 0.5, 1.0])
    orthogonal = Fake(vectors([1, 0], [0, 2]), (0, 1), (5, 5), table=table)
    parallel = Fake(vectors([1, 0], [2, 0]), (0, 1), (5, 5), table=table)
    rows = fold_rounds("fedce", [orthogonal, parallel])
    np.testing.assert_allclose(rows[0], [0.5, 0.25])
    np.testing.assert_allclose(rows.sum(axis=0), [0.25, 0.125])


def test_fedce_goes_on_from_an_older_versions_state() -> None:
    """It kept nothing by example; values are what they were, and examples count from there."""
    (named,) = make_evaluators([{"name": "e", "kind": "fedce", "utility": "accuracy"}])
    assert isinstance(named.evaluator, Fold)
    round_ = Fake(vectors([1, 0], [0, 2]), (0, 1), (5, 5), table=np.array([0.0, 0.75, 0.5, 1.0]))
    generator = np.random.default_rng(0)
    state, _ = named.evaluator.fold(named.evaluator.start(2), round_, generator)  # type: ignore[arg-type]
    older = {name: array for name, array in state.items() if name != "examples"}
    _, expected = named.evaluator.fold(state, round_, generator)  # type: ignore[arg-type]
    _, scores = named.evaluator.fold(older, round_, generator)  # type: ignore[arg-type]
    assert scores.value.tobytes() == expected.value.tobytes()


def test_dig_fl_by_hand() -> None:
    round_ = Fake(vectors([1, 2], [0, -1]), (0, 1), (30, 10), gradient=np.array([-1.0, 0.5]))
    np.testing.assert_allclose(fold_rounds("dig_fl", [round_])[0], [0.75 * (1 - 1), 0.25 * 0.5])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_chg_shapley_is_the_enumeration_of_its_game(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 6))
    a = x.mean(axis=0)
    worth = np.array([a @ a - ((a - x[mask].mean(axis=0)) ** 2).sum() if mask.any() else 0.0 for mask in all_masks(n)])
    value = closed_form(x @ x.T)
    np.testing.assert_allclose(value, shapley_coefficients(n) @ worth, atol=1e-12)
    assert value.sum() == pytest.approx(a @ a)


def test_discounted_rounds_by_hand() -> None:
    rounds = [
        Fake(vectors([1], [1]), (0, 1), (5, 5), number=t, table=np.array([0.0, 1.0, 3.0, 4.0])) for t in (1, 2, 3)
    ]
    rows = fold_rounds("lambda_multi_round", rounds, discount=0.5)
    np.testing.assert_allclose(rows, [[1, 3], [0.5, 1.5], [0.25, 0.75]])


def test_comfedsv_is_fedsv_when_everybody_is_there() -> None:
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(3, 16))
    rounds = [
        Fake(vectors([1], [1], [1], [1]), (0, 1, 2, 3), (5,) * 4, number=t + 1, table=tables[t]) for t in range(3)
    ]
    rows = fold_rounds("comfedsv", rounds)
    np.testing.assert_allclose(
        np.cumsum(rows, axis=0), np.cumsum(tables @ shapley_coefficients(4).T, axis=0), atol=1e-12
    )
    few = fold_rounds("comfedsv", rounds, exact_up_to=0, permutations=60)
    np.testing.assert_allclose(few.sum(axis=0), rows.sum(axis=0), atol=1.0)
    assert few.sum() == pytest.approx((tables[:, -1] - tables[:, 0]).sum())


def test_comfedsv_within_calls_shows_the_same_coalitions_every_round() -> None:
    """Orders whose coalitions all rounds evaluate: nothing is to be completed, and the error is that of the orders."""
    rng = np.random.default_rng(0)
    tables = np.cumsum(rng.normal(size=(3, 256)), axis=0) + 3 * all_masks(8) @ np.arange(8.0)
    rounds = [Fake(vectors(*[[1]] * 8), tuple(range(8)), (5,) * 8, number=t + 1, table=tables[t]) for t in range(3)]
    exact = (tables @ shapley_coefficients(8).T).sum(axis=0)
    within = []
    for seed in range(100):
        total, error, calls, converged = fold_totals("comfedsv", rounds, seed=seed, calls=100)
        assert converged
        assert calls <= 101
        within.append(np.abs(total - exact) <= 1.96 * error)
    assert 0.8 < np.mean(within) < 1, "seven pairs of orders"


def test_comfedsv_asks_for_the_empty_coalition_besides() -> None:
    table = np.sqrt(all_masks(3) @ np.array([1.0, 2.0, 3.0]))
    round_ = Fake(vectors([1], [1], [1]), (0, 1, 2), (5,) * 3, number=1, table=table)
    total, error, calls, converged = fold_totals("comfedsv", [round_], calls=7)
    np.testing.assert_allclose(total, shapley_coefficients(3) @ table)
    assert (error.tolist(), calls, converged) == ([0.0] * 3, 8, True)


def test_comfedsv_knows_no_error_of_what_it_completes() -> None:
    """Additive rounds, everybody worth 0.1, three of four in each: the coalition of all is never seen."""
    shifts = [tuple(k for k in range(4) if k != t % 4) for t in range(4)]
    table = 0.1 * all_masks(3).sum(axis=1)
    rounds = [Fake(vectors([1], [1], [1]), here, (5,) * 4, number=t + 1, table=table) for t, here in enumerate(shifts)]
    _, error, _, converged = fold_totals("comfedsv", rounds)
    assert np.isnan(error).all()
    assert not converged
    everybody = Fake(vectors(*[[1]] * 4), (0, 1, 2, 3), (5,) * 4, number=1, table=0.1 * all_masks(4).sum(axis=1))
    _, error, _, converged = fold_totals("comfedsv", [everybody, *rounds[1:]])
    assert np.isnan(error).all()
    assert converged


def test_comfedsv_completes_what_an_absent_client_would_have_shown() -> None:
    """Rounds of rank one, additive: client 1 misses round 2, whose utilities are half of round 1's."""
    worth = np.array([1.0, 2.0, 3.0])
    full = all_masks(3) @ worth
    first = Fake(vectors([1], [1], [1]), (0, 1, 2), (5,) * 3, number=1, table=full)
    second = Fake(vectors([1], [1]), (0, 2), (5,) * 3, number=2, table=0.5 * (all_masks(2) @ worth[[0, 2]]))
    total = fold_rounds("comfedsv", [first, second], rank=1, ridge=1e-6, sweeps=200).sum(axis=0)
    np.testing.assert_allclose(total, 1.5 * worth, rtol=1e-3)


def test_completion_of_a_matrix_of_known_rank() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 30))
    holes = rng.random(matrix.shape) < 0.3
    completed = complete(np.where(holes, np.nan, matrix), rank=2, ridge=1e-6, sweeps=200)
    assert np.array_equal(completed[~holes], matrix[~holes])
    assert np.abs(completed - matrix)[holes].max() < 0.05 * np.abs(matrix).max()


def test_rows_of_a_running_result_add_up_to_it_and_its_error() -> None:
    state, rows = nothing_yet(2), []
    for value, error in (([1.0, 2.0], [0.3, 0.1]), ([3.0, 1.0], [0.5, 0.0]), ([2.0, 5.0], [0.4, 0.2])):
        scores = Scores(value=np.array(value), std_error=np.array(error), validation_std_error=np.zeros(2), calls=1)
        state, row = advance(state, scores)
        rows.append(row)
    np.testing.assert_allclose(np.sum([row.value for row in rows], axis=0), [2.0, 5.0])
    squares = np.sum([row.std_error**2 for row in rows], axis=0)
    assert (np.sqrt(squares) >= np.array([0.4, 0.2]) - 1e-12).all()


def test_the_gradient_is_autograds() -> None:
    shape = Shape(channels=1, height=8, width=8, classes=10)
    model, generator = FlatModel("cnn8", shape), torch.Generator().manual_seed(1)
    state = model.initial_state(generator)
    images, labels = torch.rand(23, 1, 8, 8, generator=generator), torch.randint(0, 10, (23,), generator=generator)
    gradient = validation_gradient(model, state, images, labels, inner_batch=7)
    loss = functional.cross_entropy(model(images), labels)
    whole = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, model.parameters)])
    np.testing.assert_allclose(gradient, whole.numpy(), rtol=1e-3, atol=1e-6)
    again = validation_gradient(model, state, images, labels, inner_batch=7)
    assert gradient.tobytes() == again.tobytes()


# --- recorded rounds -------------------------------------------------------------------------------------------------

TABLES: list[dict[str, Any]] = [
    {"name": kind, "kind": kind, "utility": "loss" if i % 2 else "accuracy"} for i, kind in enumerate(EVALUATORS)
]
SMALL = {"calls": 9}  # of 16 coalitions: everything samples
SAMPLED = {
    "rider",
    "shapley",
    "tmc",
    "banzhaf",
    "beta_shapley",
    "least_core",
    "one_round",
    "lambda_multi_round",
    "comfedsv",
}


def tables() -> list[dict[str, Any]]:
    return [{**table, **(SMALL if table["kind"] in SAMPLED else {})} for table in TABLES]


@dataclass
class Recorded:
    """A run's recordings: random updates of a small network, a client absent in round 2, a void round 3."""

    half: ServerHalf
    data: dict[str, Any]
    recordings: Recordings
    closed: list[ClosedRound]

    def scorer(self, *names: str, **half: Any) -> RoundScorer:
        chosen = [table for table in tables() if not names or table["name"] in names]
        return RoundScorer(replace(self.half, **half), self.data, self.recordings, chosen)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    table = {
        "name": "small",
        "rounds": ROUNDS,
        "clients": {"count": CLIENTS},
        "data": {"partition": "iid", "samples_per_client": 30, "validation": 40, "test": 20},
    }
    prepare(parse(Experiment, table, "test"), folder / "roles")
    half = load_half(ServerHalf, server_folder(folder / "roles") / "half.json")
    recordings = Recordings(folder / "run")
    model, generator = FlatModel("", half.shape), torch.Generator().manual_seed(2)
    state, closed = model.initial_state(generator), []
    for number in range(1, ROUNDS + 1):
        received = (0, 2, 3) if number == 2 else tuple(range(CLIENTS))
        missing = tuple(sorted(set(range(CLIENTS)) - set(received)))
        closed.append(ClosedRound(round=number, received=received, missing=missing, void=number == 3, reason="test"))
        bundle.write(recordings.global_file(number), model.layout.specs, bundle.raw(state.numpy()))
        updates = [0.03 * torch.randn(model.layout.size, generator=generator) for _ in received]
        for client, update in zip(received, updates, strict=True):
            bundle.write(recordings.update_file(number, client), model.layout.specs, bundle.raw(update.numpy()))
        if number != 3:
            state = fedavg(state, updates, [30] * len(received))
    return Recorded(half, read_arrays(server_folder(folder / "roles") / "data.safetensors"), recordings, closed)


@pytest.fixture(scope="module")
def together(recorded: Recorded) -> list[dict[str, Any]]:
    """All evaluators over all rounds, as a server that is never disturbed scores them."""
    scorer = recorded.scorer()
    return [without_seconds(row) for closed in recorded.closed for row in scorer.rows(closed)]


def without_seconds(row: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in row.items() if key != "seconds"}


def test_every_kind_is_in_the_test() -> None:
    assert {table["kind"] for table in tables()} == set(EVALUATORS)


@pytest.mark.parametrize("kind", list(EVALUATORS))
def test_alone_a_kind_gives_the_bits_that_it_gives_among_all(
    kind: str, recorded: Recorded, together: list[dict[str, Any]]
) -> None:
    scorer = recorded.scorer(kind)
    alone = [without_seconds(row) for closed in recorded.closed for row in scorer.rows(closed)]
    assert alone == [row for row in together if row["evaluator"] == repr(kind)]
    assert any(row["value"] != "0.0" for row in alone)


def test_a_server_killed_after_every_round_gives_the_same_bits(
    recorded: Recorded, together: list[dict[str, Any]]
) -> None:
    """Each round is scored by a new process's scorer; one dies after its checkpoint, before the round was settled."""
    rows = []
    for settled, closed in enumerate(recorded.closed):
        died = recorded.scorer()
        died.resume(settled)
        died.rows(closed)
        died.checkpoint(closed.round)
        scorer = recorded.scorer()
        scorer.resume(settled)
        rows += [without_seconds(row) for row in scorer.rows(closed)]
        scorer.checkpoint(closed.round)
        scorer.forget(closed.round - 1)
    assert rows == together
    left = [number for number in range(1, ROUNDS + 1) if recorded.recordings.state_file(number).exists()]
    assert left == [ROUNDS]


def test_on_all_examples_nothing_changes(recorded: Recorded, together: list[dict[str, Any]]) -> None:
    """A subset that is the whole set: the same bits, and an error of 0."""
    scorer = recorded.scorer(scoring=replace(recorded.half.scoring, examples=40))
    assert [without_seconds(row) for closed in recorded.closed for row in scorer.rows(closed)] == together
    assert {row[key] for row in together for key in ("subset_std_error", "total_subset_std_error")} == {"0.0"}


def test_on_a_subset_every_kind_scores_says_its_error_and_a_continued_run_gives_the_same_bits(
    recorded: Recorded, together: list[dict[str, Any]]
) -> None:
    scoring = replace(recorded.half.scoring, examples=30)
    undisturbed = recorded.scorer(scoring=scoring)
    rows = [[without_seconds(row) for row in undisturbed.rows(closed)] for closed in recorded.closed]
    for settled, closed in enumerate(recorded.closed):
        scorer = recorded.scorer(scoring=scoring)
        scorer.resume(settled)
        assert [without_seconds(row) for row in scorer.rows(closed)] == rows[settled]
        scorer.checkpoint(closed.round)
    last = {row["evaluator"]: row for row in rows[-1] if row["client"] == "0"}
    errors = {repr(kind): last[repr(kind)]["total_subset_std_error"] for kind in EVALUATORS}
    untouched = {repr(kind) for kind in ("cgsv", "shapfed", "dig_fl", "chg_shapley")}
    unknown = {repr(kind) for kind in ("least_core", "comfedsv", "fold_median")}
    assert {name for name, error in errors.items() if error == "0.0"} == untouched
    assert {name for name, error in errors.items() if error == "nan"} == unknown
    whole = {row["evaluator"]: row for row in together if (row["round"], row["client"]) == ("4", "0")}
    for name in untouched:
        assert last[name]["value"] == whole[name]["value"]
    assert last["'fedsv'"]["value"] != whole["'fedsv'"]["value"]


def test_rounds_out_of_order_are_our_own_mistake(recorded: Recorded) -> None:
    scorer = recorded.scorer("cgsv")
    with pytest.raises(AssertionError, match="in order"):
        scorer.rows(recorded.closed[1])


def test_one_game_on_the_first_round_alone_is_its_fedsv(recorded: Recorded) -> None:
    chosen = [
        {"name": "fedsv", "kind": "fedsv", "utility": "loss"},
        {"name": "one", "kind": "one_round", "utility": "loss"},
        {"name": "late", "kind": "one_round", "utility": "loss", "play": "last_round"},
    ]
    scorer = RoundScorer(recorded.half, recorded.data, recorded.recordings, chosen)
    rows = [scorer.rows(closed) for closed in recorded.closed]

    def values(number: int, name: str) -> list[float]:
        return [row["value"] for row in rows[number] if row["evaluator"] == name]

    assert values(0, "fedsv") == values(0, "one")
    assert values(0, "late") == values(1, "late") == [0.0] * CLIENTS
    totals = [np.sum([values(t, name) for t in range(ROUNDS)], axis=0) for name in ("one", "late")]
    np.testing.assert_allclose(totals[0], totals[1], atol=1e-12)
    calls = [row["calls"] for t in rows for row in t if row["evaluator"] == "late" and row["client"] == 0]
    assert calls == [0, 0, 0, 16]


def test_first_order_gains_come_near_the_true_gain_of_a_small_step(recorded: Recorded) -> None:
    """The values of DIG-FL add up to the aggregate's gain in loss, to first order."""
    chosen = [{"name": "dig", "kind": "dig_fl", "utility": "loss"}, {"name": "sv", "kind": "fedsv", "utility": "loss"}]
    scorer = RoundScorer(recorded.half, recorded.data, recorded.recordings, chosen)
    rows = scorer.rows(recorded.closed[0])
    sums = [sum(row["value"] for row in rows if row["evaluator"] == name) for name in ("dig", "sv")]
    assert sums[0] == pytest.approx(sums[1], rel=0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["shapley", "tmc", "gtg_corrected", "banzhaf", "one_round"])
def test_a_round_scored_within_seconds_is_scored_again_by_its_calls(kind: str, recorded: Recorded) -> None:
    """However long the first time took, the calls that it came to give the same bits."""
    table = {"name": "e", "kind": kind, "utility": "loss", "seconds": 1e-9, "calls": 14}
    rounds = recorded.closed[:2]
    live = RoundScorer(recorded.half, recorded.data, recorded.recordings, [table])
    first = [live.rows(closed) for closed in rounds]
    slow = RoundScorer(recorded.half, recorded.data, recorded.recordings, [{**table, "seconds": 1e6}])
    again = [slow.rows(closed, spent={"e": rows[0]["calls"]}) for closed, rows in zip(rounds, first, strict=True)]
    assert [without_seconds(row) for rows in again for row in rows] == [
        without_seconds(row) for rows in first for row in rows
    ]


def test_a_fold_does_not_touch_what_it_is_given(recorded: Recorded) -> None:
    scorer = recorded.scorer()
    for named in make_evaluators(tables(), CLIENTS):
        if isinstance(named.evaluator, Fold):
            round_ = scorer.played(recorded.closed[0], scorer.read(recorded.closed[0]))
            before = named.evaluator.start(CLIENTS)
            copy = {key: array.tobytes() for key, array in before.items()}
            named.evaluator.fold(before, round_, numpy_generator(1, "x"))
            assert {key: array.tobytes() for key, array in before.items()} == copy


def test_no_fold_can_touch_what_other_evaluators_look_at(recorded: Recorded) -> None:
    scorer = recorded.scorer()
    round_ = scorer.played(recorded.closed[0], scorer.read(recorded.closed[0]))
    for array in (round_.global_D, *round_.updates_nD, round_.labels_E):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


@pytest.mark.parametrize("kind", list(EVALUATORS))
def test_an_absent_client_has_zeros_and_the_others_their_own_scores(kind: str, recorded: Recorded) -> None:
    """Client 1 takes part in nothing: a row of zeros; the others score as in an experiment that has no client 1."""
    roster = tuple(entry for entry in recorded.half.roster if entry.client != 1)
    rows: dict[bool, list[dict[str, str]]] = {}
    for counted in (True, False):
        scorer = recorded.scorer(kind, roster=roster, clients=CLIENTS if counted else 0)
        closed = [replace(round_, received=(0, 2, 3), missing=()) for round_ in recorded.closed]
        rows[counted] = [without_seconds(row) for round_ in closed for row in scorer.rows(round_)]
    absent = [row for row in rows[True] if row["client"] == "1"]
    assert len(absent) == ROUNDS
    for column in ("value", "std_error", "validation_std_error"):
        assert {row[column] for row in absent} == {"0.0"}
    assert {row["evaluated"] for row in absent} == {"0"}
    others = [row for row in rows[True] if row["client"] != "1"]
    assert others == [row for row in rows[False] if row["client"] != "1"]
    assert any(row["value"] != "0.0" for row in others)


def test_progress_counts_the_coalitions_of_every_game_of_a_round(recorded: Recorded) -> None:
    """Leave-one-out takes 5 coalitions of the round's game, and the game of all rounds 16 of its own."""
    chosen = [{"name": kind, "kind": kind, "utility": "loss"} for kind in ("loo", "one_round")]
    scorer = RoundScorer(recorded.half, recorded.data, recorded.recordings, chosen)
    told: list[tuple[int, int]] = []
    scorer.rows(recorded.closed[0], lambda *figures: told.append(figures))
    assert told == [(i, 16) for i in range(1, 6)] + [(i, 21) for i in range(6, 22)]
