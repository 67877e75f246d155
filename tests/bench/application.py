# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application that is saved, and what changes in it on a day. The same numbers give the same bytes in each run.

At scale 1: 12,000 small JSON files in 40 projects (about 230 MB), 100 uploads of 8 MB (half of each random), a table of
1,600,000 rows (about 400 MB in SQLite). A day edits 120 files, replaces one upload and updates 4,000 rows at random places.

Another scale multiplies the number of files and rows, those that a day changes included, and makes uploads smaller rather
than fewer, so that a day changes the same share of each: 1 % of the files, 1 % of the uploads, 0.25 % of the rows. What has a size
of its own does not shrink with it: restic's packs, borg's segments, this collection's shards, SQLite's pages. One
changed file costs such a container, so at a small scale the containers are fewer and each change costs a larger share.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import postgres

from ansible_collections.opskit.runbooks.tests.bench import measure

SEED = 20261123
PROJECTS = 40
UPLOADS = 100
TABLE = "CREATE TABLE usage (id INTEGER PRIMARY KEY, project TEXT, model TEXT, tokens INTEGER, note TEXT)"
Row = tuple[int, str, str, int, str]


@dataclass(frozen=True)
class Size:
    scale: float

    @property
    def files_a_project(self) -> int:
        return max(1, round(300 * self.scale))

    @property
    def upload_bytes(self) -> int:
        return max(1000, round(8_000_000 * self.scale))

    @property
    def rows(self) -> int:
        return max(1000, round(1_600_000 * self.scale))

    @property
    def edited_files(self) -> int:
        return max(1, round(120 * self.scale))

    @property
    def updated_rows(self) -> int:
        return max(1, round(4000 * self.scale))


class Writer:
    """Content from one seed."""

    def __init__(self, seed: str, words: Sequence[str] = ()) -> None:
        self.chance = random.Random(seed)
        self.words = words or [f"{self.chance.getrandbits(40):x}" for _count in range(4000)]

    def text(self, words: int) -> str:
        return " ".join(self.chance.choices(self.words, k=words))

    def document(self, number: int) -> str:
        return json.dumps({"id": number, "text": self.text(self.chance.randrange(200, 4000))})

    def upload(self, size: int) -> bytes:
        half = size // 2
        return self.chance.randbytes(size - half) + self.text(half // 10).encode()[:half].ljust(half)

    def row(self, number: int) -> Row:
        project, model = f"project-{number % PROJECTS:02d}", self.words[number % 50]
        return number, project, model, self.chance.randrange(5000), self.text(18)


def write_files(root: Path, size: Size, folders: Sequence[Path]) -> None:
    """Write documents into the given folders, one a project, and the uploads."""
    writer = Writer(f"{SEED} files", WORDS)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for item in range(size.files_a_project):
            (folder / f"{item:04d}.json").write_text(writer.document(item))
    uploads = root / "data/uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    for number in range(UPLOADS):
        (uploads / f"{number:03d}.bin").write_bytes(writer.upload(size.upload_bytes))


WORDS = Writer(str(SEED)).words


class Application:
    """One on disk, its rows in SQLite, or in a database of the given server."""

    database = "gateway"

    def __init__(self, root: Path, size: Size, server: postgres.Server | None = None) -> None:
        self.root, self.size, self.server = root, size, server
        self.project = root / "projects/project-07"

    def make(self) -> None:
        for folder in ("data/logs", "config"):
            (self.root / folder).mkdir(parents=True)
        (self.root / ".env").write_text("PORT=8080\n")
        (self.root / "config/gateway.toml").write_text("[providers]\n")
        write_files(self.root, self.size, [self.root / f"projects/project-{number:02d}/files" for number in range(PROJECTS)])
        if self.server:
            self.server.run(f"CREATE DATABASE {self.database}")
            self.server.run(TABLE, self.database)
            self.copy_all()
            self.server.run("VACUUM ANALYZE", self.database)
        else:
            with closing(sqlite3.connect(self.root / "data/gateway.db")) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(TABLE)
                connection.executemany("INSERT INTO usage VALUES (?, ?, ?, ?, ?)", self._rows())
                connection.commit()

    def _rows(self) -> Iterator[Row]:
        writer = Writer(f"{SEED} rows", WORDS)
        return (writer.row(number) for number in range(1, self.size.rows + 1))

    def copy_all(self, table: str = "usage") -> None:
        """Load all rows into a table of the server."""
        for part in _parts(self._rows(), 200_000):
            self.copy(part, table=table)

    def copy(self, rows: Sequence[Row], before: str = "", table: str = "usage", after: str = "") -> None:
        """Run SQL of a session that loads rows into a table in between."""
        assert self.server
        lines = "".join("\t".join(str(value) for value in row) + "\n" for row in rows)
        self.server.run(f"{before}\nCOPY {table} FROM STDIN;\n{lines}\\.\n{after}\n", self.database)

    def change(self, day: int) -> None:
        """Make the changes of a day; the same days in the same order give the same application."""
        writer = Writer(f"{SEED} day {day}", WORDS)
        documents = sorted(self.root.glob("projects/*/files/*.json"))
        for path in writer.chance.sample(documents, self.size.edited_files):
            document = json.loads(path.read_text())
            document["text"] = f"{writer.text(20)} {document['text'][200:]}"
            path.write_text(json.dumps(document))
        number = writer.chance.randrange(UPLOADS)
        (self.root / f"data/uploads/{number:03d}.bin").write_bytes(writer.upload(self.size.upload_bytes))
        ids = writer.chance.sample(range(1, self.size.rows + 1), self.size.updated_rows)
        rows = [writer.row(number) for number in ids]
        if self.server:
            self.copy(
                rows,
                "CREATE TEMPORARY TABLE changed (LIKE usage);",
                "changed",
                "UPDATE usage SET tokens = changed.tokens, note = changed.note FROM changed WHERE usage.id = changed.id;",
            )
        else:
            with closing(sqlite3.connect(self.root / "data/gateway.db")) as connection:
                changes = ((tokens, note, number) for number, _project, _model, tokens, note in rows)
                connection.executemany("UPDATE usage SET tokens = ?, note = ? WHERE id = ?", changes)
                connection.commit()

    def content(self) -> dict[str, str]:
        """What has to come back of the files, the rows in SQLite included."""
        return measure.content(self.root)

    def rows_in_server(self) -> str:
        """A number that stands for all rows, whatever their order; empty without the table."""
        assert self.server
        if self.server.run("SELECT to_regclass('usage') IS NULL", self.database) == "t":
            return ""
        return self.server.run("SELECT count(*), sum(hashtextextended(usage::text, 0)::numeric) FROM usage", self.database)

    def describe(self) -> str:
        paths = list(measure.files_in(self.root))
        text = f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:.0f} MB"
        if self.server:
            size = int(self.server.run(f"SELECT pg_database_size('{self.database}')"))
            text += f", and a database of {size / 1e6:.0f} MB in PostgreSQL {self.server.major}"
        return text


def _parts(rows: Iterator[Row], length: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == length:
            yield part
            part = []
    if part:
        yield part
