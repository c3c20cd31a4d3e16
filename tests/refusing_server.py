"""A server that speaks PostgreSQL's protocol as far as a refusal: what poolers that are not installed here say."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

_PROTOCOL_3 = 3  # the major version of a startup message; requests for TLS and the like have other numbers
_STATUSES = {
    "server_version": "15.6",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "in_hot_standby": "off",
    "default_transaction_read_only": "off",
}
_SECONDS_MAX = 10.0


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _welcome() -> bytes:
    statuses = (_message(b"S", f"{name}\0{value}\0".encode()) for name, value in _STATUSES.items())
    greeting = _message(b"R", struct.pack("!i", 0))
    return b"".join((greeting, *statuses, _message(b"K", struct.pack("!ii", 1, 2)), _message(b"Z", b"I")))


class RefusingServer:
    """Refuses each client in one way.

    Args:
        said: the message, without severity.
        state: its SQLSTATE.
        at_login: whether a client is refused there, or only with the first thing that it asks.

    Attributes:
        url: the address of a token store here.
    """

    def __init__(self, said: str, state: str, *, at_login: bool) -> None:
        fields = {"S": "FATAL", "V": "FATAL", "C": state, "M": said}
        body = "".join(f"{field}{value}\0" for field, value in fields.items()) + "\0"
        self._refusal = _message(b"E", body.encode())
        self._at_login = at_login
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://alice:x@127.0.0.1:{self.listener.getsockname()[1]}/alice?sslmode=disable"

    def serve(self) -> None:
        """Take one client after the other, until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                client.settimeout(_SECONDS_MAX)
                with suppress(OSError), client:
                    self._refuse(client)

    def _refuse(self, client: socket.socket) -> None:
        while True:
            length, protocol = struct.unpack("!iI", client.recv(8, socket.MSG_WAITALL))
            client.recv(length - 8, socket.MSG_WAITALL)
            if protocol >> 16 == _PROTOCOL_3:
                break
            client.sendall(b"N")
        if not self._at_login:
            client.sendall(_welcome())
            client.recv(1)
        client.sendall(self._refusal)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass


@contextmanager
def refusing(said: str, state: str, *, at_login: bool = True) -> Iterator[str]:
    """The address of a server that refuses every client, while this lasts."""
    server = RefusingServer(said, state, at_login=at_login)
    thread = threading.Thread(target=server.serve)
    with closing(server.listener):
        thread.start()
        try:
            yield server.url
        finally:
            server.listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            thread.join()
