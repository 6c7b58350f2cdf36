"""What a line between a client and the server is like: its figures, and named profiles of them. Torch-free.

Figures are of what one client sees. `latency_ms` is one way; sources give round trips, of which we take half. A profile
is a round number near a published measurement, not a model of any one provider: the source stands beside each. Figures
that no source gives, jitter above all, are our choice and marked so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The figures of one line; a figure of 0 leaves that out, so the default is a line that only passes bytes on.

    Attributes:
        latency_ms: one way, for every byte in either direction.
        jitter_ms: the latency varies by up to this much, uniformly; what follows never overtakes.
        up_mbit: 10^6 bits per second from the client to the server.
        down_mbit: 10^6 bits per second from the server to the client.
        stall_every_s: mean time between two moments at which the line stands still.
        stall_s: for how long.
        reset_every_mb: mean number of 10^6 bytes sent up between two breaks of every connection.
    """

    latency_ms: NonNegativeFloat = 0.0
    jitter_ms: NonNegativeFloat = 0.0
    up_mbit: NonNegativeFloat = 0.0
    down_mbit: NonNegativeFloat = 0.0
    stall_every_s: NonNegativeFloat = 0.0
    stall_s: NonNegativeFloat = 0.0
    reset_every_mb: NonNegativeFloat = 0.0


ProfileName = Literal["none", "lan", "wifi", "4g", "dsl", "satellite", "intercontinental"]

PROFILES: dict[ProfileName, Profile] = {
    "none": Profile(),
    # IEEE 802.3ab, 1000BASE-T, both ways at once; latency and jitter of a switched network are our choice
    "lan": Profile(latency_ms=0.1, jitter_ms=0.02, up_mbit=1000, down_mbit=1000),
    # Pei et al., "WiFi can be the weakest link of round trip network latency in the wild", INFOCOM 2016: the wireless
    # hop takes more than 20 ms for over half of the packets, and more than 100 ms for a tenth; rates are our choice
    "wifi": Profile(latency_ms=10, jitter_ms=8, up_mbit=50, down_mbit=50),
    # Ofcom, "Measuring mobile broadband performance in the UK", second wave (end of 2014): 4G on four networks in five
    # cities: 14.7 Mbit/s down, 13.6 up, 53.1 ms there and back; jitter is our choice
    "4g": Profile(latency_ms=26.5, jitter_ms=8, up_mbit=13.6, down_mbit=14.7),
    # FCC, "Measuring Broadband America", 2016, as Verizon published its part: 11.32 Mbit/s down in the tier up to
    # 15 (which sells 1 up), 37 ms there and back in the tier below; jitter is our choice
    "dsl": Profile(latency_ms=18.5, jitter_ms=2, up_mbit=1.0, down_mbit=11.3),
    # Ookla, 3rd quarter of 2021, geostationary: HughesNet 19.30 Mbit/s down, 2.54 up, and about 15 times the 44 ms of
    # a low orbit there and back; jitter is our choice
    "satellite": Profile(latency_ms=330, jitter_ms=20, up_mbit=2.5, down_mbit=19.3),
    # Verizon's service level between New York and London: at most 90 ms there and back, averaged over a month; rates
    # and jitter are our choice
    "intercontinental": Profile(latency_ms=45, jitter_ms=1, up_mbit=100, down_mbit=100),
}
