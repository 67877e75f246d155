# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real applications on loopback, and the runbooks run on them as an operator would.

What is compared is read here by other means than the collection's modules: os.lstat, hashlib and sqlite3.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

COLLECTION = Path(__file__).resolve().parents[2]
SERVICE = COLLECTION / "examples/demo/service"
SOAK = os.environ.get("OPSKIT_TEST_SIZE") == "soak"
PLAYBOOK_SECONDS = 90

# The one warning that has its reason here: the stores lie beside the data.
EXPECTED_WARNING = "on the same file system"

# What a backup saves, below the application's folder.
SAVED = ("config", "data", ".env", "projects")

State = dict[Any, tuple[Any, ...]]


@dataclass
class Result:
    """What a task said about a host, as -v prints it."""

    task: str
    host: str
    status: str
    value: dict[str, Any]


class Run:
    """A finished ansible-playbook."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output
        self.results: list[Result] = []
        task = ""
        reader = json.JSONDecoder()
        said = re.compile(r"^(?:TASK \[(?P<task>.*)\] \*+$|(?P<status>\w+): \[(?P<host>[^]]+)\](?:: FAILED!)? => (?=\{))", re.MULTILINE)
        for match in said.finditer(output):
            if match["task"] is not None:
                task = match["task"].removeprefix("opskit.runbooks.")
            else:
                self.results.append(Result(task, match["host"], match["status"], reader.raw_decode(output, match.end())[0]))
        stats = re.search(r"^\s*RUN: (?=\{)", output, re.MULTILINE)
        self.stats: dict[str, Any] = reader.raw_decode(output, stats.end())[0] if stats else {}

    def of(self, task: str, host: str | None = None) -> list[Result]:
        """Return the results of the tasks whose name ends so."""
        return [found for found in self.results if found.task.endswith(task) and host in (None, found.host)]

    def one(self, task: str, host: str | None = None) -> dict[str, Any]:
        found = self.of(task, host)
        assert len(found) == 1, f"{len(found)} results of {task!r}\n{self.output}"
        return found[0].value

    def said(self) -> str:
        """Return what was printed without the terminal's line breaks, to look for a sentence in it."""
        return re.sub(r"\s+", " ", self.output)

    def command(self, why: str, host: str | None = None) -> str:
        """Return the command that was printed below a reason, as it would be copied from the screen."""
        lines = self.one("Say what was done and what comes next", host)["msg"]
        place = next((number for number, line in enumerate(lines) if line.startswith(why)), None)
        assert place is not None, f"no {why!r} in {lines}"
        return str(lines[place + 1]).strip()

    def changed(self) -> list[str]:
        return [found.task for found in self.results if found.status == "changed"]


class Application:
    """One gateway: its folder, its port, its process. The base folder has a space in its name, as some have."""

    def __init__(self, base: Path, env: dict[str, str]) -> None:
        base.mkdir()
        self.base, self.env = base, env
        self.root = base / "gateway"
        self.store = base / "store"
        self.state = base / "state"
        self.port = free_port()

    def create(self, rows: int = 300, projects: int = 4, uploads: int = 8, upload_bytes: int = 50_000) -> None:
        self.cli("init", "--port", str(self.port))
        numbers = {"rows": rows, "projects": projects, "uploads": uploads, "upload-bytes": upload_bytes}
        self.cli("seed", *(word for name, value in numbers.items() for word in (f"--{name}", str(value))))

    def cli(self, *words: str) -> dict[str, Any]:
        argv = [sys.executable, "-m", "gateway", *words, "--root", str(self.root)]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1])) if done.stdout.strip() else {}

    def service(self, action: str) -> int:
        return subprocess.run([SERVICE, action, self.root], env=self.env, timeout=60, check=False).returncode

    def start(self) -> None:
        assert self.service("start") == 0
        wait_until(self.ready, f"{self.root} is ready", 30)

    def stop(self) -> None:
        assert self.service("stop") == 0

    @property
    def running(self) -> bool:
        return self.service("status") == 0

    def inodes(self) -> list[int]:
        """Return which file or folder each saved path is."""
        return [(self.root / name).stat().st_ino for name in SAVED]

    def process_lives(self) -> bool:
        """Whether the server's process is there, asked in microseconds."""
        try:
            return os.path.exists(f"/proc/{int((self.base / 'service.pid').read_text())}")
        except (OSError, ValueError):
            return False

    def ready(self, port: int | None = None) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def set_environment(self, **values: object) -> None:
        """Change lines of .env; the running server does not notice."""
        path = self.root / ".env"
        text = path.read_text()
        for name, value in values.items():
            text, count = re.subn(f"(?m)^{name}=.*$", f"{name}={value}", text)
            assert count == 1, name
        path.write_text(text)

    def write_uploads(self, count: int, size: int, seed: int) -> None:
        """Put files into the data that do not compress."""
        chance = random.Random(seed)
        for number in range(count):
            (self.root / f"data/uploads/block-{number}.bin").write_bytes(chance.randbytes(size))

    def destroy(self) -> None:
        """Delete everything but the logs, under the running application or not."""
        for path in [*(self.root / "data").iterdir(), *(self.root / name for name in SAVED if name != "data")]:
            if path.name != "logs":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def sets(self) -> list[str]:
        folder = self.store / "sets"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def objects(self) -> list[Path]:
        return sorted(path for path in (self.store / "objects").rglob("*") if path.is_file())

    def journal(self) -> list[dict[str, Any]]:
        return read_journal(self.state / "journal.jsonl")

    @property
    def lease(self) -> Path:
        """Which is there while a runbook is at work."""
        return self.state / "lease.json"

    def record(self) -> dict[str, Any]:
        """Return what the restore has written down of itself, with its phase; empty when nothing."""
        try:
            return dict(json.loads((self.state / "restore.json").read_bytes()))
        except FileNotFoundError:
            return {}

    def phase(self) -> str:
        return str(self.record().get("phase", ""))

    def files(self, top_folder: Path | None = None) -> State:
        """Everything that lstat, reading and listxattr tell about each saved path, by its bytes."""
        found: State = {}
        first_name: dict[int, bytes] = {}
        root = os.fsencode(top_folder or self.root)
        volatile = {os.path.join(root, b"data", name) for name in (b"logs", b"cache", b"run")}

        def add(path: bytes) -> None:
            state = os.lstat(path)
            name = os.path.relpath(path, root)
            kind = stat.S_IFMT(state.st_mode)
            content, target, sparse = "", b"", False
            if kind == stat.S_IFREG:
                with open(path, "rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                sparse = state.st_blocks * 512 < state.st_size // 2
            elif kind == stat.S_IFLNK:
                target = os.readlink(path)
            # The running application makes and removes files in its data folder.
            mtime = 0 if name == b"data" else state.st_mtime_ns
            other = first_name.setdefault(state.st_ino, name) if kind == stat.S_IFREG else b""
            xattrs = tuple(
                (key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(os.listxattr(path, follow_symlinks=False))
            )
            found[name] = (state.st_mode, state.st_uid, state.st_gid, mtime, content, sparse, target, other, xattrs)

        for top in SAVED:
            path = os.path.join(root, os.fsencode(top))
            if os.path.lexists(path):
                add(path)
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if os.path.join(folder, name) not in volatile)
                for name in sorted(folders + names):
                    if not (folder == os.path.join(root, b"data") and name.startswith(b"gateway.db")):
                        add(os.path.join(folder, name))
        return found

    def rows(self, database: Path | None = None) -> State:
        """Every row of every table, by table and row id."""
        found: State = {}
        with contextlib.closing(sqlite3.connect(f"file:{database or self.root / 'data/gateway.db'}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in connection.execute(f'SELECT rowid, * FROM "{table}"'):
                    found[table, row[0]] = row
        return found

    def by_hand(self, name: str) -> tuple[State, State]:
        """Restore a set with its own restore.sh, without Ansible and without Python; returns its files and rows."""
        folder = Path(tempfile.mkdtemp(dir=self.base))
        done = subprocess.run(["sh", self.store / "sets" / name / "restore.sh", folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "environment/.env").rename(folder / ".env")
        found = self.files(folder), self.rows(folder / "data/gateway.db")
        shutil.rmtree(folder)
        return found

    def now(self) -> tuple[State, State]:
        return self.files(), self.rows()

    def write(self, seed: int) -> None:
        """Change rows and files, some of them large, in each of the saved paths; everything stands still afterwards."""
        ledger = self.base / f"ledger-{seed}"
        self.cli("traffic", "--ledger", str(ledger), "--seconds", "1", "--rate", "20")
        self.write_uploads(12, 1_500_000, seed)
        self.set_environment(LOG_LEVEL=("INFO", "WARNING")[seed % 2])
        for name in ("config", "projects"):
            (self.root / name / "note").write_text(f"{seed}\n")

    def assert_store_whole(self) -> None:
        """Check every set by its own SHA256SUMS with sha256sum, as a person would, and that no run left anything half done."""
        assert self.sets()
        for name in self.sets():
            self.assert_set_whole(name)
        assert list((self.store / "tmp").iterdir()) == []

    def assert_newest_whole(self) -> None:
        self.assert_set_whole(self.sets()[-1])

    def assert_set_whole(self, name: str) -> None:
        argv = ["sha256sum", "--quiet", "--check", "SHA256SUMS"]
        done = subprocess.run(argv, cwd=self.store / "sets" / name, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class World:
    """Applications under the names that one inventory gives them."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(mode=0o700)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") or name == "ANSIBLE_LOG_PATH"},
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            "PYTHONPATH": str(COLLECTION / "examples/gateway"),
            "TMPDIR": str(self.temporary),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.temporary / "controller"),
            "ANSIBLE_REMOTE_TMP": str(self.temporary / "host"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTION.parents[2]),
            "ANSIBLE_INJECT_FACT_VARS": "false",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SHOW_CUSTOM_STATS": "true",
            "XDG_STATE_HOME": str(folder / "controller"),
        }
        self.applications = {name: Application(folder / f"the {name}", self.env) for name in hosts}
        self.inventory = folder / "inventory.json"
        hostvars = {name: self.description(application) for name, application in self.applications.items()}
        self.inventory.write_text(json.dumps({"all": {"hosts": hostvars}}))

    @staticmethod
    def description(application: Application) -> dict[str, Any]:
        command = [str(SERVICE)]
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "opskit_become": False,
            "application_name": "gateway",
            "application_root": str(application.root),
            "application_state_dir": str(application.state),
            "application_service_manager": "command",
            "application_start_command": [*command, "start", str(application.root)],
            "application_stop_command": [*command, "stop", str(application.root)],
            "application_status_command": [*command, "status", str(application.root)],
            "application_pause_command": [*command, "pause", str(application.root)],
            "application_resume_command": [*command, "resume", str(application.root)],
            "application_paused_command": [*command, "paused", str(application.root)],
            "application_start_timeout": 20,
            "application_live_url": f"http://127.0.0.1:{application.port}/healthz",
            "application_ready_url": f"http://127.0.0.1:{application.port}/readyz",
            "backup_store": str(application.store),
        }

    @contextlib.contextmanager
    def inventory_with(self, **changes: dict[str, Any]) -> Iterator[None]:
        """Change variables of hosts, or add hosts, for a while."""
        before = self.inventory.read_text()
        inventory = json.loads(before)
        hosts = inventory["all"]["hosts"]
        for host, variables in changes.items():
            hosts[host] = {**hosts.get(host, {}), **variables}
        self.inventory.write_text(json.dumps(inventory))
        try:
            yield
        finally:
            self.inventory.write_text(before)

    def controller_journal(self) -> list[dict[str, Any]]:
        """Return what is recorded of hosts that were not reached."""
        return read_journal(self.folder / "controller/opskit/journal.jsonl")

    @property
    def application(self) -> Application:
        """The only one."""
        (application,) = self.applications.values()
        return application

    def argv(self, runbook: str, *words: str) -> list[str]:
        return ["ansible-playbook", f"opskit.runbooks.{runbook}", "-i", str(self.inventory), "-v", *words]

    def play(self, runbook: str, *words: str, fails: bool = False, pipelining: bool = True) -> Run:
        """Run a runbook to its end. It may warn of nothing but the expected."""
        # Pipelining is a quarter faster, but leaves no files, which some tests look at.
        return self.finish(self.argv(runbook, *words), fails, {"ANSIBLE_PIPELINING": str(pipelining)})

    def paste(self, command: str, fails: bool = False) -> Run:
        """Run a line as it was printed, in a shell, from somewhere else."""
        return self.finish(["sh", "-c", command], fails, {})

    def run_shell(self, command: str) -> None:
        """Run a line as a person on the host would."""
        subprocess.run(command, shell=True, cwd=self.temporary, env=self.env, timeout=30, check=True)

    def finish(self, argv: list[str], fails: bool, env: dict[str, str]) -> Run:
        done = subprocess.run(
            argv,
            cwd=self.temporary,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            timeout=PLAYBOOK_SECONDS,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{shlex.join(argv)} ended with {done.returncode}\n{done.stdout}"
        warnings = [line for line in done.stdout.splitlines() if "WARNING]" in line and EXPECTED_WARNING not in line]
        assert warnings == [], done.stdout
        assert "Traceback (most recent call last)" not in done.stdout
        return Run(done.returncode, done.stdout)

    def module(self, name: str, host: str, **options: object) -> dict[str, Any]:
        """Run one module with what the description says; returns its result, also of a failure."""
        application = self.applications[host]
        root = application.root
        arguments = {
            "store": str(application.store),
            "application": "gateway",
            "paths": {"data": f"{root}/data", "environment": f"{root}/.env", "config": f"{root}/config", "projects": f"{root}/projects"},
            "logs": [f"{root}/data/logs"],
            "volatile": [f"{root}/data/cache", f"{root}/data/run"],
            "databases": [{"name": "gateway", "engine": "sqlite", "path": f"{root}/data/gateway.db"}],
            **options,
        }
        argv = ["ansible", "-i", str(self.inventory), host, "-m", f"opskit.runbooks.{name}", "-a", json.dumps(arguments)]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        found = re.search(r"=> (?=\{)", done.stdout)
        assert found, done.stdout + done.stderr
        return dict(json.JSONDecoder().raw_decode(done.stdout, found.end())[0])

    def close(self) -> None:
        for application in self.applications.values():
            application.stop()
            assert not application.ready()

    def start_to_kill(self, runbook: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a runbook whose modules are files, so that their processes can be told apart."""
        return subprocess.Popen(
            self.argv(runbook, *words),
            cwd=self.temporary,
            env={**self.env, "ANSIBLE_PIPELINING": "false"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def is_quiet(self) -> bool:
        """True when nothing that a runbook started here is at work any more."""
        return not any(os.fsencode(self.temporary) in command for _pid, _parent, command in processes())


def read_journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def processes() -> Iterator[tuple[int, int, bytes]]:
    """Yield id, parent and command line of each process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
                yield int(folder.name), parent, (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile


def descendants(pid: int) -> dict[int, bytes]:
    """Return the command lines of a process and all below it, by id."""
    table = list(processes())
    found = {pid: b""}
    grew = True
    while grew:
        below = {child: command for child, parent, command in table if parent in found and child not in found}
        found.update(below)
        grew = bool(below)
    return found


def send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def is_in_state(pid: int, states: bytes) -> bool:
    """True when a process is in one of the states of proc(5), or is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] in states
    except OSError:
        return True


def freeze(pids: set[int]) -> None:
    """Return when all of them stand still."""
    send(signal.SIGSTOP, pids)
    for pid in pids:
        wait_until(partial(is_in_state, pid, b"TZX"), f"process {pid} has stopped", 20)


def freeze_tree(pid: int) -> set[int]:
    """Freeze a process and all below it, so that none reacts to the end of another; returns them."""
    frozen: set[int] = set()
    while True:
        new = set(descendants(pid)) - frozen
        if not new:
            return frozen
        freeze(new)
        frozen |= new
