# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of an application with its rows in PostgreSQL: files and database in one job."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import postgres

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.application import Application, Size
from ansible_collections.opskit.runbooks.tests.bench.files import (
    ADDED,
    ADDED_NOTHING,
    DAY,
    FIRST,
    NOTHING,
    RESTORE,
    SETTLE_SECONDS,
    STORED,
    Results,
)
from ansible_collections.opskit.runbooks.tests.bench.measure import Failure, progress
from ansible_collections.opskit.runbooks.tests.bench.tools import Borgmatic, ByHand, OpskitServer, Tool, require_unchanged

KINDS: tuple[type[Tool], ...] = (ByHand, OpskitServer, Borgmatic)


def main(work: Path, scale: float, rounds: int, python: str) -> None:
    with postgres.server(work / "pg") as server:
        # What it does by itself moves the transaction id: then "nothing changed" is not the same for all.
        server.run("ALTER SYSTEM SET autovacuum = off")
        server.run("SELECT pg_reload_conf()")
        app = Application(work / "app", Size(scale), server)
        progress("postgresql: writing the application")
        app.make()
        tools = [kind(work, app, python) for kind in KINDS]
        for tool in tools:
            tool.env["PATH"] = f"{server.bin}:{tool.env['PATH']}"
        print(f"\n{app.describe()}; warm cache, medians of {rounds}; the server runs with fsync and autovacuum off")
        print("; ".join(tool.version() for tool in tools))
        time.sleep(SETTLE_SECONDS)
        results: Results = {}
        for number in range(rounds):
            progress(f"postgresql: round {number + 1} of {rounds}")
            turn = number % len(tools)
            _round(app, work, tools[turn:] + tools[:turn], number + 1, results)
        rows = []
        for row in (FIRST, NOTHING, DAY, RESTORE):
            base = statistics.median(results[ByHand.name, row])
            values = [statistics.median(results[tool.name, row]) for tool in tools]
            rows.append((row, [f"{value:.2f} ({value / base:.2f})" for value in values]))
        measure.table("seconds (ratio to by hand)", [tool.name for tool in tools], rows)
        rows = []
        for row in (STORED, ADDED_NOTHING, ADDED):
            rows.append((row, [f"{statistics.median(results[tool.name, row]) / 1e6:.1f}" for tool in tools]))
        measure.table("MB", [tool.name for tool in tools], rows)
        for tool in tools:
            shutil.rmtree(tool.store)
        shutil.rmtree(app.root)


def _round(app: Application, work: Path, tools: list[Tool], day: int, results: Results) -> None:
    def note(tool: Tool, row: str, value: float) -> None:
        results.setdefault((tool.name, row), []).append(value)

    def timed(tool: Tool, row: str, call: Callable[[], object], reads: Path) -> None:
        measure.warm(reads)
        note(tool, row, measure.seconds(call))

    for tool in tools:
        tool.reset()
        timed(tool, FIRST, tool.backup, app.root)
        before = tool.stored()
        note(tool, STORED, before)
        timed(tool, NOTHING, tool.backup, app.root)
        require_unchanged(tool, before)
        note(tool, ADDED_NOTHING, tool.stored() - (0 if isinstance(tool, ByHand) else before))
    app.change(day)
    time.sleep(SETTLE_SECONDS)
    files, rows = app.content(), app.rows_in_server()
    for tool in tools:
        before = tool.stored()
        timed(tool, DAY, tool.backup, app.root)
        note(tool, ADDED, tool.stored() - (0 if isinstance(tool, ByHand) else before))
    # Only now, because a restore replaces the database that the others save.
    assert app.server
    for tool in tools:
        with tempfile.TemporaryDirectory(dir=work, prefix="restored-") as name:
            target = Path(name)
            app.server.run("DROP TABLE usage", app.database)
            timed(tool, RESTORE, partial(tool.restore, target), tool.store)
            measure.require_equal(f"{tool.name}, {RESTORE}", files, measure.content(target / "app"))
            found = app.rows_in_server()
            if found != rows:
                raise Failure(f"{tool.name}, {RESTORE}: the rows are {found or 'gone'}, and were {rows}")
            if isinstance(tool, OpskitServer):
                tool.forget(target)
    app.server.run("VACUUM ANALYZE", app.database)
