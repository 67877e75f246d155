# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running server of a root, as commands find it and speak to it."""

from __future__ import annotations

import fcntl
import json
import urllib.error
import urllib.request
from typing import Any

from gateway import GatewayError
from gateway.settings import Layout, Settings

NOT_RUNNING = 3  # what commands exit with, as init scripts answer `status`


class NotRunning(GatewayError):
    pass


def running(layout: Layout) -> tuple[int, int] | None:
    """(pid, port) of the root's server, None when there is none: a pid file that nobody locks is a leftover."""
    try:
        with (layout.run / "gateway.pid").open(encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(stream.read()), int((layout.run / "gateway.port").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise GatewayError(f"{layout.run}: the server is starting, try again") from None
    except OSError as exc:
        raise GatewayError(f"the pid file cannot be read: {exc}") from None
    return None


def require_running(settings: Settings) -> tuple[int, int]:
    found = running(settings.layout)
    if found is None:
        raise NotRunning(f"no server is running for {settings.layout.root}")
    return found


def call(settings: Settings, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Call the running server as administrator; GET without a body. The token is read from .env, never from argv."""
    port = require_running(settings)[1]
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "localhost") else settings.host
    host = f"[{host}]" if ":" in host else host
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{host}:{port}{path}", data)
    request.add_header("Authorization", f"Bearer {settings.admin_token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        found = json.load(exc)
        if body is None:
            return exc.code, found
        raise GatewayError(f"the server on port {port} refused: {found.get('error')}") from None
    except (OSError, ValueError) as exc:
        raise GatewayError(f"the server on port {port} does not answer: {exc}") from None


def show(value: dict[str, Any]) -> None:
    """Print an answer as one line."""
    print(json.dumps(value))
