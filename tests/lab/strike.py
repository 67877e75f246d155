# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs as root on a host: waits until a module has come to a point, and ends its process with SIGKILL.

    python3 -c "$(cat strike.py)" '{"module": "backup_restore", "point": "exchanging", "seconds": 0, "state": "...", "store": "..."}'

With "session": true everything dies that is in the cgroup of the module's process, which is its login session.

Prints whether it struck; ends at the latest when its input does. It looks only while the module's process is there, and strikes only
if what it saw is still so when that stands still.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any


def processes(word: bytes) -> set[int]:
    """Return the ids of the processes whose command line has an argument that ends so."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            # Not a shell or sudo that starts it.
            if b"python" in words[0] and any(one.endswith(word) for one in words[1:]):
                found.add(int(folder.name))
    return found


def runs(program: str) -> bool:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "comm").read_text().strip() == program:
                    return True
            except OSError:
                continue
    return False


def phase(what: dict[str, Any]) -> str:
    try:
        return str(json.loads((Path(what["state"]) / what["record"]).read_bytes())["phase"])
    except FileNotFoundError:
        return ""


def reached(what: dict[str, Any], since: float) -> bool:
    point = what["point"]
    if point == "storing":
        return any((Path(what["store"]) / "tmp").iterdir())
    if point == "paused":
        # From when the watchdog is there; before that nothing is paused.
        try:
            folder = Path(what["state"]) / "pause"
            return (folder / "watchdog").read_text() == json.loads((folder / "pause.json").read_bytes())["id"]
        except FileNotFoundError:
            return False
    if point in ("isolated", "started"):
        # A drill has its network, or a copy of the application.
        units = [path.name for path in Path("/run/systemd/system").glob(f"opskit-drill-{Path(what['state']).name}-*")]
        return any(name.endswith("-network.service" if point == "isolated" else "@blue.service") for name in units)
    if point in ("pg_dump", "pg_restore"):
        return runs(point)
    if point == "after":
        return time.monotonic() - since > float(what["seconds"])
    return phase(what) == point


def send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def session(pids: set[int]) -> set[int]:
    """Return all processes that share the cgroup of some, in systemd's own hierarchy or in the only one."""
    found = set(pids)
    for pid in pids:
        lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        for _number, controllers, path in lines:
            for top in {"name=systemd": ("/sys/fs/cgroup/systemd",), "": ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")}.get(controllers, ()):
                listing = Path(f"{top}{path}/cgroup.procs")
                if path != "/" and listing.exists():
                    found.update(int(line) for line in listing.read_text().split())
    return found - {os.getpid()}


def main() -> str:
    what = json.loads(sys.argv[1])
    script = f"/AnsiballZ_{what['module']}.py".encode()
    before = phase(what)
    left = what["point"] != before  # the restore before this one has left its phase
    since = 0.0
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        pids = processes(script)
        if not pids:
            since = 0.0
            continue
        since = since or time.monotonic()
        while all(os.path.exists(f"/proc/{pid}") for pid in pids):
            left = left or phase(what) != before
            if left and reached(what, since):
                send(signal.SIGSTOP, pids)
                time.sleep(0.02)
                if reached(what, since):
                    send(signal.SIGKILL, session(pids) if what.get("session") else pids)
                    return "struck"
                send(signal.SIGCONT, pids)
    return "missed"


print(main())
