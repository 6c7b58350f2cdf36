"""One round's updates under a defence: the aggregate, the verdict and any coalition's model, by the same rule.

A coalition is joined as if its members had been the whole round: with the parameters, the carried state and the draws
of that round. So its model is a pure function of the recorded round and the mask, and all members' is the aggregate.

Legend: n participants, D float values of a state, P of them trainable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelyard.aggregation import make_defence
from steelyard.aggregation.base import Group, Setting, State, Verdict
from steelyard.aggregation.defence import Defence, take
from steelyard.aggregation.fedavg import weighted_sum
from steelyard.aggregation.rows import Rows, Vector, read_only


class JoinedRound:
    """A round's updates and what joins them.

    Args:
        defence: the rule and the steps before it.
        state: what the rule carried on from the rounds before.
        setting: the round.
        global_D: the state that the round began with, float32 [D].
        updates: the participants' updates, float32 [D] each, in client order.
        samples: n_k of each participant.
        members: each participant's place in the roster.
    """

    def __init__(
        self,
        *,
        defence: Defence,
        state: State,
        setting: Setting,
        global_D: torch.Tensor,
        updates: Sequence[torch.Tensor],
        samples: Sequence[int],
        members: Sequence[int],
    ) -> None:
        self.defence, self.state, self.setting, self.members = defence, state, setting, tuple(members)
        self._global_D, self._updates = global_D, tuple(updates)
        self._trainable = len(setting.global_P)
        vectors = [read_only(update_D.numpy()) for update_D in self._updates]
        self._group = Group(
            rows=Rows(vectors, self._trainable), samples=tuple(samples), members=tuple(members), setting=setting
        )

    def verdict(self) -> Verdict | None:
        """What the rule says of the round's updates; None of a round without any."""
        return self.defence.decide(self.state, self._group) if self._updates else None

    def model(self, places: Sequence[int]) -> torch.Tensor:
        """The model of a coalition of participants, [D]; nobody's is the round's global state."""
        if not places:
            return self._global_D.clone()
        group = take(self._group, places)
        return self._step(group, self.defence.decide(self.state, group), places) + self._global_D

    def aggregate(self, verdict: Verdict | None) -> torch.Tensor:
        """The next global model, [D]: bit for bit that of the coalition of all."""
        if verdict is None:
            return self._global_D.clone()
        return self._step(self._group, verdict, range(len(self._updates))) + self._global_D

    def after(self, verdict: Verdict | None) -> State:
        """What the rule carries on from this round; a round without updates leaves it as it was."""
        if verdict is None:
            return self.state
        step_D = self._step(self._group, verdict, range(len(self._updates)))
        step_P: Vector = step_D[: self._trainable].numpy()
        return self.defence.after(self.state, self._group, step_P)

    def packed(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What `unpacked` needs beside global state, updates and samples to join as this one, in another process."""
        setting = self.setting
        arrays = {"state/" + key: array for key, array in self.state.items()}
        if setting.root_P is not None:
            arrays["root"] = setting.root_P
        return {
            "table": dict(self.defence.table),
            "number": setting.number,
            "seed": setting.seed,
            "clients": setting.clients,
            "trainable": self._trainable,
            "members": list(self.members),
        }, arrays

    def _step(self, group: Group, verdict: Verdict, places: Sequence[int]) -> torch.Tensor:
        """The joined step, [D]: the rule's for what is trained, the mean by samples for normalization statistics."""
        updates, p = [self._updates[k] for k in places], self._trainable
        if verdict.step_P is None:
            trained_P = weighted_sum([update_D[:p] for update_D in updates], verdict.weights_n.tolist())
        else:
            trained_P = torch.from_numpy(np.asarray(verdict.step_P, dtype=np.float32))
        if p == len(self._global_D):
            return trained_P
        return torch.cat([trained_P, weighted_sum([update_D[p:] for update_D in updates], group.shares_n.tolist())])


def unpacked(
    words: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    global_D: torch.Tensor,
    updates: Sequence[torch.Tensor],
    samples: Sequence[int],
) -> JoinedRound:
    """The round that another process packed."""
    defence = make_defence(words["table"], words["clients"])
    assert defence is not None, "only a round with a defence is packed"
    prefix = "state/"
    return JoinedRound(
        defence=defence,
        state={key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)},
        setting=Setting(
            number=words["number"],
            seed=words["seed"],
            clients=words["clients"],
            global_P=read_only(global_D[: words["trainable"]].numpy()),
            root_P=arrays.get("root"),
        ),
        global_D=global_D,
        updates=updates,
        samples=samples,
        members=words["members"],
    )
