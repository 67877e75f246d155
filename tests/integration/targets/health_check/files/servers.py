#!/usr/bin/env python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers on 127.0.0.1 that behave well and badly. Usage: servers.py PORTS_FILE; they end after two minutes or GET /stop."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIFETIME_S = 120


class Handler(BaseHTTPRequestHandler):
    """Answers by path."""

    asked: dict[str, int] = {}

    def do_GET(self) -> None:
        """Answer."""
        number = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if self.path == "/stop":
            self.answer(200, b"bye")
            threading.Thread(target=self.server.shutdown).start()
        elif self.path == "/ok":
            self.answer(200, b'{"status": "ok", "database": {"lag_s": 0.5}}')
        elif self.path.startswith("/third"):
            self.answer(200 if number >= 3 else 503, b"starting")
        elif self.path == "/token":
            self.answer(200, (self.headers.get("Authorization") or "none").encode())
        elif self.path == "/bytes":
            self.answer(500, b"\xff\xfe\x00\x1b[31m")
        elif self.path == "/drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _number in range(1000):
                self.wfile.write(b".")
                time.sleep(0.1)
        else:
            self.answer(404, b"no such page")

    def answer(self, status: int, body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: nobody reads it."""


def main() -> None:
    """Listen, tell the ports, and serve."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # The kernel accepts for it, and nobody ever answers.
    silent = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    ports = {"http": server.server_port, "silent": silent.getsockname()[1], "free": free}
    with open(f"{sys.argv[1]}.new", "w", encoding="utf-8") as stream:
        json.dump(ports, stream)
    os.rename(f"{sys.argv[1]}.new", sys.argv[1])
    timer = threading.Timer(LIFETIME_S, server.shutdown)
    timer.daemon = True
    timer.start()
    server.serve_forever()


if __name__ == "__main__":
    main()
