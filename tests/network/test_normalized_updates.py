"""Updates of a network with batch normalization over the wire: what the server takes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steelyard.models.layout import variances
from steelyard.recording import Recordings, read_vector
from steelyard.wire import pb


def test_a_variance_below_zero_is_refused_and_the_round_goes_on(make_federation: Callable[..., Any]) -> None:
    federation = make_federation(model={"name": "cnn32_bn"})
    clients = [federation.client(k) for k in range(3)]
    for client in clients:
        assert client.join().refusal == ""
    clients[1].wait_for(lambda s: s.phase == pb.OPEN and s.participating)
    model = clients[1].fetch(1)
    for client in clients:
        client.specs = clients[1].specs
    assert not [spec.name for spec in clients[1].specs if "num_batches" in spec.name], "counters do not travel"
    name, place = variances(clients[1].specs)[1]
    assert model[place].tolist() == [1.0] * (place.stop - place.start)

    update = np.zeros_like(model)
    update[place] = -1.0
    update[place.start + 3] = np.nextafter(np.float32(-1), np.float32(-2))
    answer = clients[1].submit(1, update)
    assert answer.refusal == "NEGATIVE_VARIANCE"
    assert answer.detail.startswith(f"client 1: {name}[3] of at least 0 expected with the update added, got 1 + (-1")
    assert federation.await_event("refused", client=1, refusal="NEGATIVE_VARIANCE")["detail"] == answer.detail
    assert not Recordings(federation.run).updates(1), "nothing of it is kept"

    update[place.start + 3] = -1.0
    assert clients[1].submit(1, update).refusal == "", "down to 0 is fine, and who was refused may send another"
    for client in (clients[0], clients[2]):
        assert client.submit(1, np.zeros_like(model)).refusal == ""
    assert federation.await_event("round_closed", round=1)["received"] == [0, 1, 2]
    federation.await_event("scored", round=1)
    after = read_vector(Recordings(federation.run).global_file(2))
    np.testing.assert_allclose(after[place], 2 / 3, rtol=1e-6, err_msg="averaged like parameters: (1 + 0 + 1) / 3")
