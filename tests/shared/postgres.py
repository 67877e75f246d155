# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL server for tests: Debian's binaries, a folder, a socket and a port of its own.

    with postgres.server() as server:
        server.run("CREATE ROLE app LOGIN PASSWORD 'x'; CREATE DATABASE app OWNER app")
        # by socket: host=server.host port=server.port, by TCP: host=127.0.0.1 port=server.port

The superuser logs in by peer, from the user of the test and from the server's own; everybody else with a password
(SCRAM), so that a wrong one is really refused. Needs Python 3.8 and its standard library, util-linux, and Debian's package postgresql.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LIBRARY = Path("/usr/lib/postgresql")
START_SECONDS = 30.0
SETTINGS = """
unix_socket_directories = '{host}'
listen_addresses = '127.0.0.1'
fsync = off
full_page_writes = off
synchronous_commit = off
max_wal_size = '256MB'
log_destination = 'stderr'
log_line_prefix = '%m [%p] %q%u@%d/%a '
"""


def majors() -> list[int]:
    """Major versions whose server is installed, newest first."""
    return sorted((int(path.parts[-2]) for path in LIBRARY.glob("*/bin") if (path / "initdb").exists()), reverse=True)


class Server:
    """One cluster. `host` is the folder of its socket, `bin` the folder of its programs, `user` who it runs as."""

    superuser = "postgres"

    def __init__(self, folder: Path, major: int) -> None:
        self.folder, self.major, self.bin = folder, major, LIBRARY / str(major) / "bin"
        self.data, self.host, self.port = folder / "data", str(folder / "socket"), 0
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._caller = pwd.getpwuid(os.geteuid())
        self.user = self._caller.pw_name
        self._as_user: list[str] = ["setpriv"]
        if self._caller.pw_uid == 0:  # initdb and postgres refuse root
            names = {entry.pw_name for entry in pwd.getpwall()}
            owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self.user = owner.pw_name
            self._as_user += [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
            os.chown(folder, owner.pw_uid, owner.pw_gid)

    def create(self) -> None:
        """Make the empty cluster: UTF-8, the C.UTF-8 locale, checksums of pages."""
        options = ["--username", self.superuser, "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-sync"]
        self._do([*self._as_user, str(self.bin / "initdb"), "-D", str(self.data), *options])
        self._do([*self._as_user, "mkdir", "-m", "755", self.host])
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.write(SETTINGS.format(host=self.host))
        users = sorted({self._caller.pw_name, self.user})
        (self.data / "pg_ident.conf").write_text("".join(f'tests "{name}" {self.superuser}\n' for name in users))
        (self.data / "pg_hba.conf").write_text(
            f"local all,replication {self.superuser} peer map=tests\n"
            "local all,replication all scram-sha-256\n"
            "host all,replication all 127.0.0.1/32 scram-sha-256\n"
        )

    def start(self) -> None:
        """Start the server, on the port that it had before, and return once it answers."""
        # It ends with the test's process, however that ends: pg_ctl would leave it behind.
        argv = [*self._as_user, "--pdeathsig=QUIT", str(self.bin / "postgres"), "-D", str(self.data)]
        for attempt in range(5):
            port = self.port or _free_port()
            with self._log.open("ab") as log:
                started = log.tell()
                self._process = subprocess.Popen(
                    [*argv, "-p", str(port)], cwd="/", env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            if self._answers(port):
                self.port = port
                return
            self.stop(signal.SIGQUIT)
            said = self._log.read_bytes()[started:].decode(errors="replace")
            if self.port or attempt == 4 or "Address already in use" not in said:  # another one took the free port
                raise RuntimeError(f"PostgreSQL {self.major} did not start in {self.folder}:\n{said}")

    def _answers(self, port: int) -> bool:
        end = time.monotonic() + START_SECONDS
        asks = [str(self.bin / "pg_isready"), "-q", "-h", self.host, "-p", str(port), "-U", self.superuser, "-d", "postgres"]
        while self._process and self._process.poll() is None and time.monotonic() < end:
            if subprocess.run(asks, cwd="/", env=_environment(), check=False).returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server as the signal says: SIGTERM smart, SIGINT fast, SIGQUIT immediate. Nothing where it is stopped."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(START_SECONDS)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None

    def run(self, sql: str, database: str = "postgres") -> str:
        """Run SQL as the superuser, end at the first error (RuntimeError); rows are lines, columns divided by `|`."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]
        where = ["-h", self.host, "-p", str(self.port), "-U", self.superuser, "-d", database]
        return self._do([str(self.bin / "psql"), *options, *where], sql).rstrip("\n")

    def _do(self, argv: Sequence[str], text: str = "") -> str:
        done = subprocess.run(
            argv,
            cwd="/",
            env=_environment(),
            input=text.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
        return done.stdout.decode()


def _environment() -> dict[str, str]:
    """The test's own without what would send a client elsewhere; messages in English."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C.UTF-8"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(folder: Path | None = None, major: int | None = None) -> Iterator[Server]:
    """A running server in `folder`, which must be empty or missing, by default a new one in the folder for temporary
    files; stopped and removed at the end. `major` is the version, by default the newest installed.

    As root the server runs as postgres or nobody, for whom the way to `folder` has to be open: pytest's `tmp_path` is
    not. The path of a socket has at most 107 bytes, so `folder` has to be short.
    """
    installed = majors()
    if not installed or major not in (None, *installed):
        raise RuntimeError(f"no server of PostgreSQL {major or ''} in {LIBRARY} (found {installed}): apt-get install postgresql")
    made = Path(tempfile.mkdtemp(prefix="pg-")) if folder is None else folder
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    made.chmod(0o755)  # the socket is for every user, what is beside it is not
    try:
        running = Server(made, major or installed[0])
        try:
            running.create()
            running.start()
            yield running
        finally:
            running.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(made)
