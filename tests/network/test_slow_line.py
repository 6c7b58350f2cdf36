"""A line so slow that what is on its way takes it minutes, which no ping and no answer to one can overtake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.network.test_link import Links, push


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_update_arrives_that_takes_longer_than_a_ping_may(tmp_path: Path) -> None:
    """gRPC's own limits are 20 s to the first ping and 60 s for its answer."""
    links = Links(tmp_path)
    try:
        assert push(links, 3_000_000, 0.2, timeout_s=200.0) > 0.9
    finally:
        links.stop()
