# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers on loopback, and the engine with the options as the module's own specification fills them in."""

from __future__ import annotations

import socket
import struct
import threading
import time
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Type

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._health.runner import health_check
from ansible_collections.opskit.runbooks.plugins.module_utils._health.spec import ARGUMENTS

Handler = Callable[[socket.socket, int], None]


class Server:
    """Accepts on a free port of 127.0.0.1 and gives every connection to the handler, with its number from 0."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: List[bytes] = []

    def __enter__(self) -> Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                return  # closed
            number, self.connections = self.connections, self.connections + 1
            threading.Thread(target=self._handle, args=(connection, number), daemon=True).start()

    def _handle(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                self._handler(connection, number)
            except OSError:
                return  # the probe went away, as it may

    def url(self, path: str = "/") -> str:
        """Return an address of this server."""
        return f"http://127.0.0.1:{self.port}{path}"


def read_request(connection: socket.socket) -> bytes:
    """Read up to the end of the request's header."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(4096)
        if not piece:
            break
        data += piece
    return data


def reply(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return a whole answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def http(*answers: bytes) -> Server:
    """Return a server that gives these answers in turn, and the last one for ever after."""

    def handle(connection: socket.socket, number: int) -> None:
        server.requests.append(read_request(connection))
        connection.sendall(answers[min(number, len(answers) - 1)])

    server = Server(handle)
    return server


def answers(data: bytes) -> Handler:
    """Return a handler that reads a request and answers this, HTTP or not."""

    def handle(connection: socket.socket, _number: int) -> None:
        read_request(connection)
        connection.sendall(data)

    return handle


def says(data: bytes) -> Server:
    """Return a server that says this first and then closes."""
    return Server(lambda connection, _number: connection.sendall(data))


def silent(connection: socket.socket, _number: int) -> None:
    """Accept and never say a word."""
    while connection.recv(4096):
        pass


def reset(connection: socket.socket, _number: int) -> None:
    """Read, then end the connection with RST."""
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(data: bytes, pause_s: float) -> Handler:
    """Return a handler that reads a request and answers byte after byte."""

    def handle(connection: socket.socket, _number: int) -> None:
        read_request(connection)
        for value in data:
            connection.sendall(bytes([value]))
            time.sleep(pause_s)

    return handle


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def run(*checks: Dict[str, Any], check_mode: bool = False, **params: Any) -> Dict[str, Any]:
    """Run checks as the module does; an id that is not given is the type."""
    given = [{"id": check["type"], **check} for check in checks]
    validated = ArgumentSpecValidator(ARGUMENTS).validate({"checks": given, **params})
    assert validated.error_messages == []
    return health_check(validated.validated_parameters, check_mode, Clock())


def look(**check: Any) -> Dict[str, Any]:
    """Run one check once and return its row."""
    row: Dict[str, Any] = run(check, fail_on="never")["checks"][0]
    return row
