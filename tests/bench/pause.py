# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the writes of a busy application stand still for a backup, as its client sees it.

The reference application with 12,000 files, 100 uploads of 8 MB and about 400 MB of rows (at scale 1), under about 100 writes
a second over HTTP, its rows in SQLite and then in PostgreSQL. A gap is the longest time between two acknowledged writes while
a backup is made: by this collection (the first set, and the next a little later), and by hand, which stops the application for tar and
a copy of the database. Each copy is then restored to another place, and every write that was acknowledged before the gap has to
be in it: row, file, and that both fit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import postgres

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.application import SEED, WORDS, Application, Size, Writer, write_files
from ansible_collections.opskit.runbooks.tests.bench.measure import Failure, progress
from ansible_collections.opskit.runbooks.tests.bench.tools import Opskit

GATEWAY = measure.COLLECTION / "examples/gateway"
RATE = 100
CALM_SECONDS = 5.0
START_SECONDS = 30.0
PAUSE_SECONDS = 60
PROJECTS = 40
ROW_BYTES = 130
"""About what a row takes with its index; the rows come to 400 MB at scale 1."""


class Gateway(Application):
    """The reference application, and its server as a child."""

    def __init__(self, root: Path, size: Size, server: postgres.Server | None, python: str, work: Path) -> None:
        super().__init__(root, size, server)
        self.python = python
        self.env = measure.environment(work)
        self.env["PYTHONPATH"] = f"{GATEWAY}:{measure.BUILD}"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def argv(self, *words: str, root: Path | None = None) -> list[str]:
        command, *rest = words
        return [self.python, "-m", "gateway", command, "--root", str(root or self.root), *rest]

    def call(self, *words: str, root: Path | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(measure.run(self.argv(*words, root=root), self.root.parent, self.env))
        return answer

    def url(self, database: str) -> str:
        if self.server is None:
            return "sqlite:///data/gateway.db"
        return f"postgresql+psycopg2://gateway:benchmark@127.0.0.1:{self.server.port}/{database}"

    def make(self) -> None:
        if self.server:
            self.server.run("CREATE ROLE gateway LOGIN PASSWORD 'benchmark'")
            self.server.run(f"CREATE DATABASE {self.database} OWNER gateway")
        self.call("init", "--port", "0", "--database-url", self.url(self.database))
        self.call("seed", "--rows", "100", "--projects", str(PROJECTS), "--uploads", "0")
        write_files(self.root, self.size, sorted(path / "files" for path in (self.root / "projects").iterdir()))
        chance = Writer(f"{SEED} usage", WORDS)
        count = max(1000, round(400_000_000 * self.size.scale / ROW_BYTES))
        kinds = ("input", "cache_read", "cache_write", "output", "reasoning")
        begun = "2026-01-01 00:00:00"
        rows = (
            (1 + number % PROJECTS, 1 + number % 3, chance.text(5), kinds[number % 5], chance.chance.randrange(4000), begun)
            for number in range(count)
        )
        columns = "project_id, provider_id, model, type, tokens, created_at"
        if self.server:
            lines: list[str] = []
            for number, row in enumerate(rows, 1):
                lines.append("\t".join(str(value) for value in row))
                if number % 200_000 == 0 or number == count:
                    text = "\n".join(lines)
                    self.server.run(f"COPY usage ({columns}) FROM STDIN;\n{text}\n\\.\n", self.database)
                    lines = []
        else:
            with contextlib.closing(sqlite3.connect(self.root / "data/gateway.db")) as connection:
                connection.executemany(f"INSERT INTO usage ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)
                connection.commit()

    def start(self) -> None:
        log = self.root.parent / "gateway.log"
        with log.open("ab") as stream:
            # After a stop at the port that the client knows.
            self.process = subprocess.Popen(
                self.argv("serve", "--port", str(self.port)),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
                port = int((self.root / "data/run/gateway.port").read_text())
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    self.port = port
                    return
            time.sleep(0.02)
        raise Failure(f"the reference application did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def writes(self, ledger: Path) -> Iterator[None]:
        """Have a client write all the time; it is cut off at the end."""
        words = ["--ledger", str(ledger), "--rate", str(RATE), "--seconds", "86400"]
        client = subprocess.Popen(
            self.argv("traffic", *words), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(CALM_SECONDS)
            yield
            time.sleep(1)
            if client.poll() is not None:
                raise Failure("the client that writes has ended by itself")
        finally:
            client.send_signal(signal.SIGINT)
            client.wait(START_SECONDS)


@dataclass
class Gap:
    seconds: float
    last: str
    """When the last write before it was acknowledged (RFC 3339)."""


def longest_gap(ledger: Path, begin: float, end: float) -> Gap:
    """The longest time without an acknowledged write that touches the time between two moments (seconds since 1970)."""
    lines = ledger.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["time"] for line in lines if line.endswith("}")]
    times = [datetime.fromisoformat(text).timestamp() for text in texts]
    gaps = [
        (after - before, text) for before, after, text in zip(times, times[1:], texts, strict=False) if after >= begin and before <= end
    ]
    if not gaps:
        raise Failure(f"no write was acknowledged around the backup; {len(times)} were at all")
    return Gap(*max(gaps))


@dataclass
class Seen:
    """Values of each round."""

    gap: list[float] = field(default_factory=list)
    pause: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    checked: int = 0


class ByOpskit(Opskit):
    """backup_set with a hook that pauses the writes, or without where this version has no such option."""

    app: Gateway
    pauses = True

    def options(self) -> dict[str, Any]:
        if not self.pauses:
            return {}
        # The module's own environment leads its children to this collection, not to the application.
        lead = ["env", f"PYTHONPATH={self.app.env['PYTHONPATH']}"]
        begin, end, check = ([*lead, *self.app.argv(word)] for word in ("pause", "resume", "paused"))
        hook = {"kind": "hook", "begin": begin, "end": end, "check": check, "seconds": PAUSE_SECONDS}
        return {"pause": hook, "require_pause": True, "state_dir": str(self.work / "state")}

    def look_for_pause(self) -> None:
        try:
            self.module("backup_set", _ansible_check_mode=True, **self.options(), **self.source(self.app.root))
        except Failure as failure:
            if "Unsupported parameters" not in str(failure):
                raise
            self.pauses = False

    def save(self) -> float | None:
        self.last = self.module("backup_set", verify="content", **self.options(), **self.source(self.app.root))
        pause = self.last["set"].get("pause_s")
        return None if pause is None else float(pause)

    def bring_back(self, target: Path, database: str) -> None:
        (target / "app").mkdir()
        source = self.source(target / "app", database)
        state = str(target / "state")
        self.module("backup_restore", set=self.last["set"]["id"], state_dir=state, **source)


class ByHand:
    """Stop, tar, dump, start; kept as an archive and a dump."""

    def __init__(self, work: Path, app: Gateway) -> None:
        self.work, self.app, self.store = work, app, work / "by-hand"
        self.store.mkdir()

    def login(self) -> str:
        server = self.app.server
        return f"-h {server.host} -p {server.port} -U {server.superuser}" if server else ""

    def save(self) -> None:
        script = f"tar --create {self.app.root.name} | zstd -3 -T0 -q -f -o {self.store}/app.tar.zst"
        if self.app.server:
            dump = f"{self.app.server.bin}/pg_dump {self.login()} --format=custom --compress=0 {self.app.database}"
            script += f"; {dump} | zstd -3 -T0 -q -f -o {self.store}/gateway.dump.zst"
        self.app.stop()
        measure.run(measure.pipe(f"{script}; sync -f {self.store}"), self.work, self.app.env)
        self.app.start()

    def bring_back(self, target: Path, database: str) -> None:
        script = f"zstd -dcq {self.store}/app.tar.zst | tar --extract -p --directory={target}"
        if self.app.server:
            self.app.server.run(f"CREATE DATABASE {database} OWNER gateway")
            restore = f"{self.app.server.bin}/pg_restore {self.login()} --exit-on-error --dbname={database}"
            script += f"; zstd -dcq {self.store}/gateway.dump.zst | {restore}"
        measure.run(measure.pipe(script), self.work, self.app.env)


def main(work: Path, scale: float, rounds: int, python: str) -> None:
    for engine in ("SQLite", "PostgreSQL"):
        with contextlib.ExitStack() as stack:
            top = Path(tempfile.mkdtemp(dir=work, prefix="pause-"))
            stack.callback(shutil.rmtree, top)
            top.chmod(0o755)
            server = stack.enter_context(postgres.server(top / "pg")) if engine == "PostgreSQL" else None
            if server:
                # The client waits for each commit as it does in earnest.
                server.run("ALTER SYSTEM SET synchronous_commit = on")
                server.run("ALTER SYSTEM SET fsync = on")
                server.run("SELECT pg_reload_conf()")
            (top / "app").mkdir()
            app = Gateway(top / "app", Size(scale), server, python, top)
            progress(f"pause: writing the application with {engine}")
            app.make()
            stack.callback(app.stop)
            app.start()
            _table(engine, app, top, rounds, python)


def _table(engine: str, app: Gateway, work: Path, rounds: int, python: str) -> None:
    opskit, by_hand = ByOpskit(work, app, python), ByHand(work, app)
    ledger = work / "ledger"
    seen: dict[str, Seen] = {name: Seen() for name in ("no backup", "first set", "next set", "stopped for tar")}
    opskit.look_for_pause()

    def watched(name: str, save: Callable[[], float | None]) -> Gap:
        begin = time.time()
        pause = save()
        end = time.time()
        time.sleep(1)
        gap = longest_gap(ledger, begin, end)
        seen[name].gap.append(gap.seconds)
        seen[name].whole.append(end - begin)
        if pause is not None:
            seen[name].pause.append(pause)
        return gap

    def check(name: str, bring_back: Callable[[Path, str], None], until: str) -> None:
        with tempfile.TemporaryDirectory(dir=work, prefix="restored-") as folder:
            target = Path(folder)
            bring_back(target, "restored")
            env = target / "app/.env"
            env.write_text(env.read_text().replace(app.url(app.database), app.url("restored")))
            found = app.call("ledger-check", "--ledger", str(ledger), "--until", until, root=target / "app")
            if app.server:
                app.server.run("DROP DATABASE restored")
            seen[name].checked += int(found["checked"])

    print(f"\n{app.describe()}, {os.cpu_count()} cores; rows in {engine}, {RATE} writes a second; medians of {rounds}", flush=True)
    if not opskit.pauses:
        print("This backup_set has no option `pause`: its sets are made without one, while the application writes.")
    for number in range(rounds):
        progress(f"pause: {engine}, round {number + 1} of {rounds}")
        shutil.rmtree(opskit.store, ignore_errors=True)
        for name in ("first set", "next set"):
            with app.writes(ledger):
                if name == "first set":
                    watched("no backup", lambda: time.sleep(CALM_SECONDS))
                begun = datetime.now().astimezone().isoformat()
                gap = watched(name, opskit.save)
            # Without a pause the moment of a set is not known better than that it was after its beginning.
            check(name, opskit.bring_back, gap.last if opskit.pauses else begun)
        with app.writes(ledger):
            gap = watched("stopped for tar", by_hand.save)
        check("stopped for tar", by_hand.bring_back, gap.last)
    rows = []
    for name, values in seen.items():
        numbers = (values.gap, values.pause, values.whole)
        cells = [f"{statistics.median(of):.2f}" if of else "-" for of in numbers]
        rows.append((name, [*cells, str(values.checked) if values.checked else "-"]))
    measure.table(f"{engine}: seconds", ["longest gap", "pause of the set", "whole backup", "writes found again"], rows)
