# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application that tries to reach what it should not, and says over HTTP what it has reached.

python3 spy.py '{"port": 8199, "tcp": [["10.89.77.13", 22]], "unix": ["/run/dbus/system_bus_socket", "@spy"], "write": ["/srv/x"],
                 "read": "/opt/spy/data/word"}'
"""

from __future__ import annotations

import http.server
import json
import socket
import sys
from typing import Any

WHAT = json.loads(sys.argv[1])


def reached() -> list[Any]:
    found: list[Any] = []
    for address, port in WHAT["tcp"]:
        try:
            socket.create_connection((address, port), 2).close()
            found.append(f"{address}:{port}")
        except OSError:
            continue
    for path in WHAT["unix"]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect("\0" + path[1:] if path.startswith("@") else path)
                found.append(path)
            except OSError:
                continue
    for path in WHAT["write"]:
        try:
            with open(path, "a") as stream:
                stream.write("spy\n")
            found.append(path)
        except OSError:
            continue
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with open(WHAT["read"]) as stream:
            word = stream.read().strip()
        # In its own data it may write.
        with open(WHAT["read"] + ".new", "w") as stream:
            stream.write("written\n")
        body = json.dumps({"reached": reached(), "word": word}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("127.0.0.1", WHAT["port"]), Handler).serve_forever()
