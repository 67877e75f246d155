# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of files and an SQLite database: this collection beside tar with zstd, restic and borg."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.application import Application, Size
from ansible_collections.opskit.runbooks.tests.bench.measure import Peak, progress
from ansible_collections.opskit.runbooks.tests.bench.tools import Borg, Opskit, Restic, Tar, Tool, require_unchanged

SETTLE_SECONDS = 2.5
"""Files that were written a moment ago have to be read again to be sure of them; nobody backs up that soon."""

FIRST, NOTHING, VERIFY, DAY = "first backup", "nothing changed", "verify all content", "one day's changes"
RESTORE, PROJECT = "full restore", "one project of 40"
TIMED = (FIRST, NOTHING, DAY, RESTORE, PROJECT, VERIFY)
STORED, ADDED, ADDED_NOTHING = "stored after the first", "added by one day", "added by nothing changed"
KINDS: tuple[type[Tool], ...] = (Tar, Opskit, Restic, Borg)

Results = dict[tuple[str, str], list[float]]
"""Values by tool and row."""


class Course:
    """One round of every tool through everything, on the application as it is; it leaves it a day older."""

    def __init__(self, app: Application, work: Path, cold: bool, memory: bool, results: Results) -> None:
        self.app, self.work, self.cold, self.memory, self.results = app, work, cold, memory, results

    def note(self, tool: Tool, row: str, value: float) -> None:
        self.results.setdefault((tool.name, row), []).append(value)

    def time(self, tool: Tool, row: str, work: Callable[[], object], reads: Path) -> None:
        if self.memory:
            tool.peak = Peak()
            work()
            self.note(tool, row, tool.peak.bytes)
            tool.peak = None
            return
        if self.cold:
            measure.drop_caches()
        else:
            measure.warm(reads)
        self.note(tool, row, measure.seconds(work))

    def run(self, tools: list[Tool], day: int) -> None:
        for tool in tools:
            tool.reset()
            self.time(tool, FIRST, tool.backup, self.app.root)
            before = tool.stored()
            self.time(tool, NOTHING, tool.backup, self.app.root)
            require_unchanged(tool, before)
            self.time(tool, VERIFY, tool.verify, tool.store)
            if not self.memory:
                self.note(tool, STORED, before)
                self.note(tool, ADDED_NOTHING, before if isinstance(tool, Tar) else tool.stored() - before)
        self.app.change(day)
        time.sleep(SETTLE_SECONDS)
        expected = self.app.content()
        project = measure.content(self.app.project)
        for tool in tools:
            before = tool.stored()
            self.time(tool, DAY, tool.backup, self.app.root)
            if not self.memory:
                self.note(tool, ADDED, tool.stored() - (0 if isinstance(tool, Tar) else before))
            with tempfile.TemporaryDirectory(dir=self.work, prefix="restored-") as name:
                target = Path(name)
                self.time(tool, RESTORE, partial(tool.restore, target), tool.store)
                measure.require_equal(f"{tool.name}, {RESTORE}", expected, measure.content(target / "app"))
            with tempfile.TemporaryDirectory(dir=self.work, prefix="restored-") as name:
                target = Path(name)
                self.time(tool, PROJECT, partial(tool.project, target), tool.store)
                found = next((path for path in target.rglob(self.app.project.name) if path.is_dir()), target)
                measure.require_equal(f"{tool.name}, {PROJECT}", project, measure.content(found))


def main(work: Path, scale: float, rounds: int, python: str) -> None:
    app = Application(work / "app", Size(scale))
    progress("files: writing the application")
    app.make()
    tools = [kind(work, app, python) for kind in KINDS]
    print(f"\n{app.describe()}, {os.cpu_count()} cores; medians of {rounds}")
    print("; ".join(tool.version() for tool in tools))
    time.sleep(SETTLE_SECONDS)
    caches = [False, True] if measure.can_drop_caches() else [False]
    if len(caches) == 1:
        print("No cold cache: this needs root and a /proc/sys/vm/drop_caches that can be written.")
    results: dict[str, Results] = {"warm": {}, "cold": {}, "memory": {}}
    day = 0
    for number in range(rounds):
        for cold in caches:
            day += 1
            progress(f"files: round {number + 1} of {rounds}, {'cold' if cold else 'warm'} cache")
            turn = number % len(tools)  # nobody is always the first
            Course(app, work, cold, False, results["cold" if cold else "warm"]).run(tools[turn:] + tools[:turn], day)
    progress("files: memory")
    Course(app, work, False, True, results["memory"]).run(tools, day + 1)
    for cold in caches:
        _print_times("cold" if cold else "warm", results["cold" if cold else "warm"], tools)
    _print_sizes("MB", [STORED, ADDED_NOTHING, ADDED], results["warm"], tools)
    _print_sizes("peak memory, MB", TIMED, results["memory"], tools)
    print(f"\nA backup of {Opskit.name} is timed without reading it back (verify: none), as the others are; its own default adds that.")
    print(f"{PROJECT}: of {Opskit.name} by hand, as the README.txt of a store says, every file compared with its hash.")
    for tool in tools:
        shutil.rmtree(tool.store)
    shutil.rmtree(app.root)


def _print_times(cache: str, results: Results, tools: list[Tool]) -> None:
    rows = []
    for row in TIMED:
        base = statistics.median(results[Tar.name, row])
        cells = []
        for tool in tools:
            value = statistics.median(results[tool.name, row])
            cells.append(f"{value:.2f}" if isinstance(tool, Tar) else f"{value:.2f} ({value / base:.2f})")
        rows.append((row, cells))
    measure.table(f"{cache} cache: seconds (ratio to tar)", [tool.name for tool in tools], rows)


def _print_sizes(title: str, names: list[str] | tuple[str, ...], results: Results, tools: list[Tool]) -> None:
    rows = [(row, [f"{statistics.median(results[tool.name, row]) / 1e6:.1f}" for tool in tools]) for row in names]
    measure.table(title, [tool.name for tool in tools], rows)
