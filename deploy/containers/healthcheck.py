"""Whether the process of a container does its part, read from the kernel's table of its network. Knows nothing else.

`listens PORT`: somebody here accepts connections (server, link). `connected PORT`: somebody here holds a connection to
that port of a peer (client). It opens no connection of its own, which the other side would have to refuse and log.
"""

from __future__ import annotations

import sys
from pathlib import Path

LISTEN, ESTABLISHED = "0A", "01"  # from Linux's <net/tcp_states.h>, as /proc/net/tcp prints them


def is_healthy(what: str, port: int, tables: list[str]) -> bool:
    """Look for a socket in the texts of /proc/net/tcp and tcp6.

    Args:
        what: "listens" or "connected".
        port: of the own socket that listens, or of the peer.
        tables: each with one header line.
    """
    column, state = (1, LISTEN) if what == "listens" else (2, ESTABLISHED)
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(row[3] == state and int(row[column].rpartition(":")[2], 16) == port for row in rows)


if __name__ == "__main__":
    paths = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    texts = [path.read_text(encoding="ascii") for path in paths]
    sys.exit(0 if is_healthy(sys.argv[1], int(sys.argv[2]), texts) else 1)
