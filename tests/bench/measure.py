# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the bench measures with: processes, caches, memory, bytes, and whether content came back."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

COMMAND_SECONDS = 3600.0
"""Far above what any command takes; one that hangs ends the bench."""

SAMPLE_SECONDS = 0.02
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PAGE = os.sysconf("SC_PAGE_SIZE")

COLLECTION = Path(__file__).resolve().parents[2]
BUILD = COLLECTION.parents[2]
"""The folder that holds ``ansible_collections``."""


class Failure(Exception):
    """A tool did not do its job. `output` is what it printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Peak:
    """The highest sum of resident memory (RSS) of a process and all that it started, as /proc shows it every 20 ms.

    A page that two of them share counts twice. The page cache does not count, nor does a server that was there before.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def look(self, top: int) -> None:
        parents: dict[int, int] = {}
        pages: dict[int, int] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as stream:
                        # The program's name, in parentheses, may hold anything (proc(5)).
                        fields = stream.read().rpartition(b")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                parents[int(name)], pages[int(name)] = int(fields[1]), int(fields[21])
        tree = {top}
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in tree} - tree
            tree |= more
            grown = bool(more)
        self.bytes = max(self.bytes, sum(pages.get(pid, 0) for pid in tree) * PAGE)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The bench's own without what would lead a tool elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BORG", "RESTIC", "PG", "PYTHON"))}
    return {**kept, "HOME": str(home), "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(BUILD), **extra}


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str], peak: Peak | None = None) -> str:
    """Run a command to its end and return its output. Raises :class:`Failure` with its last words."""
    end = time.monotonic() + COMMAND_SECONDS
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while True:
            try:
                out, err = process.communicate(timeout=SAMPLE_SECONDS if peak else COMMAND_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    raise Failure(f"{' '.join(argv)}: not finished after {COMMAND_SECONDS:.0f} s") from None
                if peak:
                    peak.look(process.pid)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # also what a command left behind
        except ProcessLookupError:
            pass
    if process.returncode:
        said = (out + b"\n" + err).decode(errors="replace").strip()
        raise Failure(f"{' '.join(argv)}: exit status {process.returncode}\n{said[-2000:]}", out.decode(errors="replace"))
    return out.decode(errors="replace")


def pipe(script: str) -> list[str]:
    """The argument vector for a line of shell that fails when any part of a pipe does."""
    return ["bash", "-o", "pipefail", "-ec", script]


def can_drop_caches() -> bool:
    try:
        DROP_CACHES.write_text("1\n")
    except OSError:
        return False
    return True


def drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text("3\n")


def warm(*folders: Path) -> None:
    """Read everything once, so that a warm cache is one."""
    for folder in folders:
        for path in files_in(folder):
            with path.open("rb") as stream:
                while stream.read(1 << 20):
                    pass
    os.sync()


def seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def files_in(folder: Path) -> Iterable[Path]:
    for top, _folders, names in os.walk(folder):
        for name in names:
            path = Path(top) / name
            if path.is_file() and not path.is_symlink():
                yield path


def size_of(folder: Path, without: Sequence[str] = ()) -> int:
    """Bytes of all files below a folder, but not of those below its entries in `without`."""
    return sum(path.stat().st_size for path in files_in(folder) if path.relative_to(folder).parts[0] not in without)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content(root: Path) -> dict[str, str]:
    """What has to come back: the hash of each file by its path, of a database in SQLite as that of its rows.

    A database that is restored from an image is the same in its rows, not in each byte.
    """
    seen: dict[str, str] = {}
    for path in files_in(root):
        name = path.relative_to(root).as_posix()
        if ".opskit-restore" not in name and not name.endswith(("-wal", "-shm")):
            seen[name] = rows_of(path) if path.suffix == ".db" else sha256(path)
    return seen


def rows_of(path: Path) -> str:
    digest = hashlib.sha256()
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        for row in connection.execute("SELECT * FROM usage ORDER BY id"):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def require_equal(whose: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise :class:`Failure` where what came back is not what was saved."""
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong or not expected:
        raise Failure(f"{whose}: {len(wrong)} of {len(expected)} files did not come back as they were: {wrong[:5]}")


def table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    lines = [(title, list(columns)), *((name, list(cells)) for name, cells in rows)]
    first = max(len(name) for name, _cells in lines)
    widths = [max(len(cells[number]) for _name, cells in lines) for number in range(len(columns))]
    print()
    for name, cells in lines:
        print("  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip())
    sys.stdout.flush()


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
