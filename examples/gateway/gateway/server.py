# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running the application: one process, one event loop, an ordered start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from typing import IO, Any

import uvicorn

from gateway import GatewayError, __version__, logs
from gateway.app import Gateway, create_app
from gateway.database import Database, add_providers, connect
from gateway.settings import Layout, Settings, log_level, read_env


@contextlib.contextmanager
def _only_server(layout: Layout) -> Iterator[IO[str]]:
    path = layout.run / "gateway.pid"
    with path.open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise GatewayError(f"{layout.root} is served already, by process {stream.read().strip()}") from None
        stream.truncate(0)
        yield stream
        for name in ("gateway.port", "gateway.pid"):
            (layout.run / name).unlink(missing_ok=True)


class Server(uvicorn.Server):
    """uvicorn with signals of our own, the same on every version: a stop that ends, reopened logs, a new level."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, log_files: logs.Logs, announce: str) -> None:
        self._grace = gateway.limits["stop_grace_seconds"]
        # uvicorn from 0.22 on cancels what is left after this; an older one leaves with force_exit alone
        config.timeout_graceful_shutdown = self._grace
        super().__init__(config)
        self._gateway, self._logs, self._announce = gateway, log_files, announce

    def install_signal_handlers(self) -> None:  # uvicorn before 0.29
        pass

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn from 0.29 on
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self._announce, flush=True)
        _tell_systemd("READY=1")
        logs.app.info("started", extra={"fields": {"version": __version__, "colour": self._gateway.colour}})

    def stop(self) -> None:
        """Take no more connections, finish what is in flight; end anyway after stop_grace_seconds."""
        if self.should_exit:
            return
        logs.app.info("stopping")
        _tell_systemd("STOPPING=1")
        self.should_exit = True
        self._gateway.gate.stop()
        asyncio.get_running_loop().call_later(self._grace, self._force)

    def _force(self) -> None:
        logs.app.error("requests did not finish within %g s and are cut off", self._grace)
        self.force_exit = True

    def reload(self) -> None:
        path = self._gateway.layout.env
        try:
            level = log_level(read_env(path), path)
        except GatewayError as exc:
            logs.app.error("settings are not reloaded: %s", exc)
            return
        self._logs.set_level(level)
        logs.audited("settings.reload", log_level=level)

    def reopen_logs(self) -> None:
        try:
            self._logs.reopen()
        except OSError as exc:
            logs.app.error("log files cannot be reopened, the old ones stay in use: %s", exc)


def _tell_systemd(state: str) -> None:
    """Say how far the server is where systemd asked to be told (sd_notify(3), Type=notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError as exc:
            logs.app.error("systemd cannot be told %s: %s", state, exc)


def _sweep(layout: Layout) -> None:
    """Remove what a killed server left half done: temporary files and the folders of deleted projects."""
    for folder in (layout.uploads, *layout.projects.glob("*/files"), *layout.projects.glob("*")):
        for path in folder.glob(".upload-*.tmp"):
            path.unlink()
    for folder in layout.projects.glob(".deleted-*"):
        shutil.rmtree(folder)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise GatewayError(f"{host} port {port} cannot be listened on: {exc}; choose another with --port") from None
    return listener


def serve(settings: Settings, port: int | None, colour: str) -> None:
    """Serve until SIGTERM or SIGINT. Everything that can be refused is refused before the port is open."""
    layout = settings.layout
    database = connect(settings.database, f"gateway-{colour}")  # first: a missing one must not leave new folders behind
    try:
        database.check_schema()
        try:
            layout.make_folders()
            _write_probe(layout)
            with _only_server(layout) as pid_file, _listen(settings.host, _port(settings, port)) as listener:
                _sweep(layout)
                log_files = logs.Logs(layout.logs, settings.log_level)
                for name in add_providers(database, settings.providers):
                    logs.audited("provider.add", provider=name)
                actual = listener.getsockname()[1]
                (layout.run / "gateway.port").write_text(f"{actual}\n", encoding="ascii")
                pid_file.write(f"{os.getpid()}\n")
                pid_file.flush()
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                announce = f"gateway {__version__} on http://{host}:{actual} (process {os.getpid()})"
                asyncio.run(_run(settings, database, colour, log_files, listener, announce))
        except OSError as exc:
            raise GatewayError(f"the server cannot start: {exc}") from None
    finally:
        database.close(checkpoint=True)
    logs.app.info("stopped")


def _port(settings: Settings, port: int | None) -> int:
    return settings.port if port is None else port


def _write_probe(layout: Layout) -> None:
    for folder in (layout.projects, layout.uploads, layout.cache, layout.logs, layout.run):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise GatewayError(f"{folder} is not writable for user {os.geteuid()}: correct its owner or mode")


async def _run(settings: Settings, database: Database, colour: str, log_files: logs.Logs, listener: socket.socket, announce: str) -> None:
    gateway = Gateway(settings, database, colour)
    config = uvicorn.Config(create_app(gateway), log_config=None, access_log=False, lifespan="off", server_header=False)
    server = Server(config, gateway, log_files, announce)
    loop = asyncio.get_running_loop()
    actions: dict[int, Any] = {
        signal.SIGTERM: server.stop,
        signal.SIGINT: server.stop,
        signal.SIGHUP: server.reload,
        signal.SIGUSR1: server.reopen_logs,
    }
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    try:
        await server.serve(sockets=[listener])
    finally:
        gateway.faults.release_lock()
