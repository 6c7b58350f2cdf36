"""Who the clients are: identity from the certificate or the join token, samples n_k and stays from `prepare`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import cast

import grpc

from steelyard.certificates import client_of_certificate
from steelyard.config import RosterEntry
from steelyard.errors import RefusedError


class Roster:
    """The clients of a run, by index.

    A call's identity is the certificate's when the channel is mutually authenticated, else the join token's. It is
    never the order of joining nor a field of a message.
    """

    def __init__(self, entries: tuple[RosterEntry, ...]) -> None:
        self.clients = tuple(sorted(entry.client for entry in entries))
        self._samples = {entry.client: entry.samples for entry in entries}
        self.stays = {entry.client: entry.stay for entry in entries}
        self._tokens = {entry.client: entry.token_sha256 for entry in entries if entry.token_sha256}

    def samples(self, client: int) -> int:
        """n_k: the client's number of training samples."""
        return self._samples[client]

    def identify(self, context: grpc.ServicerContext) -> int:
        """The client index of a call.

        Raises:
            RefusedError: UNKNOWN_CLIENT, the call shows no certificate and no token of this roster.
        """
        auth = cast("Mapping[str, Sequence[bytes]]", context.auth_context())  # its stub says bytes
        if auth.get("transport_security_type", [b""])[0] == b"ssl":
            client = client_of_certificate(auth["x509_pem_cert"][0])
            if client is None or client not in self._samples:
                raise RefusedError("UNKNOWN_CLIENT", f"a certificate of clients {self.clients} expected, got {client}")
            return client
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("steelyard-token", ""))
        client = self._of_token(token)
        if client is None:
            raise RefusedError("UNKNOWN_CLIENT", "a join token of this roster expected, got another or none")
        return client

    def _of_token(self, token: str) -> int | None:
        shown = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for client, known in self._tokens.items():  # every entry is compared: the time tells nothing
            if hmac.compare_digest(shown, known):
                found = client
        return found
