# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One TCP connection, with a conversation where one is wanted."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Dict, Optional

from .._core.errors import OpskitError
from .net import TimedSocket, connect, endpoint
from .probe import Attempt, Outcome, Probe, ProbeFailure, compile_regex, excerpt

MAX_BYTES = 65536


class TcpProbe(Probe):
    """Connects. That alone proves only that something accepts, which a proxy or a socket unit does for a dead service too."""

    timeout_reason = "tcp_timeout"

    def __init__(self, options: Dict[str, Any]) -> None:
        self._to = endpoint(options["host"], options["port"], f"{options['host']} port {options['port']}")
        super().__init__(str(self._to))
        self._send: Optional[str] = options["send"]
        self._expect = None
        if options["expect_regex"] is not None:
            self._expect = compile_regex(options["expect_regex"], self.target)
            self.expected["expect_regex"] = options["expect_regex"]
        if self._send is not None and self._expect is None:
            raise OpskitError("send without expect_regex proves nothing", self.target, "Set expect_regex as well")

    def ask(self, attempt: Attempt) -> Outcome:
        """Connect, say what is to be said, and read until the expected text has come."""
        sock = connect(self._to, attempt)
        with closing(sock):
            if self._expect is None:
                return Outcome("pass", answered=True)
            stream = TimedSocket(sock, attempt)
            data = b""
            with attempt.timed("answer"):
                if self._send is not None:
                    stream.sendall(self._send.encode("utf-8", errors="surrogateescape"))
                while len(data) < MAX_BYTES:
                    piece = stream.recv(4096)
                    if not piece:
                        break
                    data += piece
                    text = data.decode("utf-8", errors="replace")
                    if self._expect.search(text):
                        return Outcome("pass", observed={"answer": excerpt(text)}, answered=True)
        if not data:
            raise ProbeFailure("connect_reset", f"{attempt.address} closed the connection without a word")
        shown = excerpt(data.decode("utf-8", errors="replace"))
        raise ProbeFailure("body_mismatch", "the answer does not match expect_regex", {"answer": shown}, answered=True)
