"""A run with an absent client, one that joins late and one that leaves and returns: the same by every launcher."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,  # tests/network/test_comings_and_goings.py is its fast half, in one process
    pytest.mark.timeout(400),  # several waits, each bounded, on a loaded machine
]

COMINGS = """
name = "tiny-comings"
seed = 3
rounds = 4
[data]
samples_per_client = 20
validation = 20
test = 20
[training]
epochs = 1
[clients]
count = 4
absent = [1]
[[clients.schedule]]
client = 0
leave = 2
return = 3
[[clients.schedule]]
client = 2
join = 2
leave = 4
[[evaluators]]
name = "loo_loss"
kind = "loo"
utility = "loss"
"""
EXPECTED = [[0, 3], [2, 3], [0, 2, 3], [0, 3]]


def test_comings_and_goings_are_the_same_by_every_launcher_and_replay(shell: Any) -> None:
    experiment = shell.folder / "comings.toml"
    experiment.write_text(COMINGS, encoding="utf-8")
    looks = []
    for out, arguments in (("a", ()), ("b", ("--launcher", "inline", "--order", "3,2,0"))):
        code, said, err = shell.steelyard("run", str(experiment), "--out", str(shell.folder / out), *arguments)
        assert (code, err) == (0, "")
        assert "1 (absent)" in said
        assert "refused" not in said, "who leaves as scheduled does nothing wrong"
        looks.append(shell.look(next((shell.folder / out).glob("tiny-*"))))
    ours, theirs = looks
    assert (ours.scores, ours.models) == (theirs.scores, theirs.models)

    for look in looks:
        assert [event["participants"] for event in look.events("round_opened")] == EXPECTED
        assert [event["received"] for event in look.events("round_closed")] == EXPECTED
        rounds_by_client = {
            k: {int(t) for t, client, _, value in look.scores if int(client) == k and value != "0.0"} for k in range(4)
        }
        assert rounds_by_client == {0: {1, 3, 4}, 1: set(), 2: {2, 3}, 3: {1, 2, 3, 4}}
        assert [len(look.events("joined", client=k)) for k in range(4)] == [2, 0, 1, 1], "coming back is real"
        assert [bool(look.events("left", client=k)) for k in (0, 2)] == [True, True], "and so is leaving"
    assert not (ours.run / "roles" / "client-1").exists()

    code, said, err = shell.steelyard("replay", str(ours.run))
    assert (code, err) == (0, "")
    assert "16 of 16 scores and 4 of 4 models are bit-equal to the live run" in said
