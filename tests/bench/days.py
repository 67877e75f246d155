# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept after many days with a backup each, and retention of 7 daily, 4 weekly and 3 monthly at the end of each.

Time is simulated: by restic's --time and borg's --timestamp, and by a clock that is given to this collection's modules.
All tools save the same days. tar keeps a file for each day that the policy keeps; only those of the last day are made. A store's
trash counts as gone: it is emptied by the machine's clock, which has not moved by the 24 hours that it waits.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.application import Application, Size
from ansible_collections.opskit.runbooks.tests.bench.measure import progress
from ansible_collections.opskit.runbooks.tests.bench.tools import DAILY, MONTHLY, WEEKLY, Borg, Opskit, Restic, Tar, Tool

BEGIN = datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
PERIODS: tuple[tuple[int, Callable[[datetime], object]], ...] = (
    (DAILY, lambda time: time.date()),
    (WEEKLY, lambda time: time.isocalendar()[:2]),
    (MONTHLY, lambda time: (time.year, time.month)),
)


def kept(moments: Iterable[datetime]) -> set[datetime]:
    """The newest of each of the last days, weeks and months."""
    newest_first = sorted(moments, reverse=True)
    result: set[datetime] = set()
    for count, period in PERIODS:
        seen: dict[object, datetime] = {}
        for moment in newest_first:
            seen.setdefault(period(moment), moment)
        result.update(list(seen.values())[:count])
    return result


def main(work: Path, scale: float, count: int, python: str) -> None:
    app = Application(work / "app", Size(scale))
    progress("days: writing the application")
    app.make()
    tools: list[Tool] = [kind(work, app, python) for kind in (Tar, Opskit, Restic, Borg)]
    moments = [BEGIN + timedelta(days=day) for day in range(count)]
    by_tar = kept(moments)
    seconds = dict.fromkeys((tool.name for tool in tools), 0.0)
    first: dict[str, int] = {}
    described = app.describe()
    for tool in tools:
        tool.reset()
    for day, moment in enumerate(moments):
        if day:
            app.change(day)
        if day % 10 == 0:
            progress(f"days: day {day + 1} of {count}")
        for tool in tools:
            if isinstance(tool, Tar):
                if day == 0 or moment in by_tar:
                    tool.backup(moment)
                    first.setdefault(tool.name, tool.stored())
                if day == 0 and moment not in by_tar:
                    tool.archive.unlink()
                continue
            seconds[tool.name] += measure.seconds(partial(tool.backup, moment))
            first.setdefault(tool.name, tool.stored())
            seconds[tool.name] += measure.seconds(partial(tool.retain, moment + timedelta(minutes=30)))
    expected = app.content()
    for tool in tools:
        with tempfile.TemporaryDirectory(dir=work, prefix="restored-") as name:
            tool.restore(Path(name))
            measure.require_equal(f"{tool.name}, after {count} days", expected, measure.content(Path(name) / "app"))
    print(f"\n{described} at first; {count} days")
    base = tools[0].stored()
    rows = [
        ("stored on the first day, MB", [f"{first[tool.name] / 1e6:.1f}" for tool in tools]),
        ("kept at the end, MB (ratio to tar)", [f"{tool.stored() / 1e6:.1f} ({tool.stored() / base:.2f})" for tool in tools]),
        ("backups kept", [str(tool.kept()) for tool in tools]),
        ("backups and retention, minutes", [f"{seconds[tool.name] / 60:.1f}" if seconds[tool.name] else "-" for tool in tools]),
    ]
    measure.table(f"after {count} days", [tool.name for tool in tools], rows)
    print("\nWhat waits in a store's trash counts as gone.")
    if scale < 1:
        print("Shards, packs and segments have the same size at every scale, so here each change costs more of the whole than at scale 1.")
    for tool in tools:
        shutil.rmtree(tool.store)
    shutil.rmtree(app.root)
