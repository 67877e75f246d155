# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill a new application with rows and files; the same numbers and seed give the same content."""

from __future__ import annotations

import hashlib
import json
import random
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway import GatewayError, provider
from gateway.database import Database, projects, providers, sign, uploads, usage, user_preferences, users
from gateway.settings import Settings

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 20_000
FILES_A_PROJECT = 3
TYPES = ("input", "cache_read", "cache_write", "output", "reasoning")


def _content(rng: random.Random, size: int, binary: bool) -> bytes:
    """`size` bytes, either incompressible or like prose."""
    if binary:
        return rng.randbytes(size)
    block = " ".join(rng.choices(provider.WORDS, k=2000)).encode() + b"\n"
    head = f"document {rng.getrandbits(64):016x}\n".encode()
    return (head + block * (size // len(block) + 1))[:size]


def seed(
    settings: Settings, database: Database, rows: int, project_count: int, upload_count: int, upload_bytes: int, key: int
) -> dict[str, int]:
    """Insert users, preferences, providers with keys, projects with files, uploads, `rows` usage rows; the counts."""
    rng = random.Random(key)
    layout = settings.layout
    user_count = max(3, project_count // 2)
    upload_rows: list[dict[str, Any]] = []

    def store(path: Path, content: bytes, project_id: int | None) -> None:
        path.write_bytes(content)
        name, sha256 = path.relative_to(layout.root).as_posix(), hashlib.sha256(content).hexdigest()
        values = {"path": name, "sha256": sha256, "bytes": len(content), "project_id": project_id}
        upload_rows.append({**values, "signature": sign(settings.secret_key, name, sha256), "created_at": FIRST})

    try:
        layout.make_folders()
        with database.writer.begin() as connection:
            if connection.execute(sa.select(sa.func.count()).select_from(projects)).scalar():
                raise GatewayError(f"{database.name} has projects: only a new application can be seeded")

            def insert(table: sa.Table, values: list[dict[str, Any]]) -> None:
                for start in range(0, len(values), BATCH):
                    connection.execute(sa.insert(table), values[start : start + BATCH])

            def ids(table: sa.Table) -> list[int]:
                return list(connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars())

            insert(users, [{"name": f"user-{n:05d}", "created_at": FIRST} for n in range(user_count)])
            user_ids = ids(users)
            insert(
                user_preferences,
                [
                    {"user_id": user, "key": name, "value": value}
                    for user in user_ids
                    for name, value in (
                        ("theme", rng.choice(["light", "dark"])),
                        ("page_size", rng.choice([20, 50, 100])),
                        ("notify", {"mail": rng.random() < 0.5, "hours": [rng.randrange(24), rng.randrange(24)]}),
                    )
                ],
            )
            made = [f"provider-{n}" for n in range(3)]
            settings_value = {"kind": "fake", "models": ["fake-small"], "chunk_seconds": 0}
            insert(
                providers,
                [
                    {
                        "name": name,
                        "settings": {**settings_value, "region": rng.choice(["eu", "us"])},
                        "api_key": "sk-" + "".join(rng.choices(string.ascii_letters + string.digits, k=40)),
                    }
                    for name in made
                ],
            )
            provider_ids = ids(providers)
            slugs = [f"project-{n:05d}" for n in range(project_count)]
            insert(
                projects,
                [
                    {"slug": slug, "title": f"Project {n}", "user_id": user_ids[n % user_count], "created_at": FIRST}
                    for n, slug in enumerate(slugs)
                ],
            )
            project_ids = ids(projects)
            for number, (slug, project_id) in enumerate(zip(slugs, project_ids, strict=True)):
                folder = layout.projects / slug
                (folder / "files").mkdir(parents=True, exist_ok=True)  # a killed run may have left it
                owner = f"user-{number % user_count:05d}"
                about = {"slug": slug, "title": f"Project {number}", "owner": owner}
                text = json.dumps({**about, "created_at": FIRST.strftime("%Y-%m-%dT%H:%M:%SZ")}, indent=2)
                (folder / "project.json").write_text(text + "\n", encoding="utf-8")
                for index in range(FILES_A_PROJECT):
                    content = _content(rng, rng.randrange(200, 4000), binary=index == 2)
                    store(folder / "files" / f"note {index} é.txt", content, project_id)
            for number in range(upload_count):
                content = _content(rng, upload_bytes, binary=number % 2 == 1)
                store(layout.uploads / f"upload-{number:06d}.bin", content, None)
            insert(uploads, upload_rows)
            for start in range(0, rows if project_ids else 0, BATCH):
                insert(
                    usage,
                    [
                        {
                            "project_id": project_ids[number % project_count],
                            "provider_id": provider_ids[number % len(provider_ids)],
                            "model": "fake-small",
                            "type": TYPES[number % 5],
                            "tokens": rng.randrange(1, 4000),
                            "created_at": FIRST + timedelta(seconds=number),
                        }
                        for number in range(start, min(rows, start + BATCH))
                    ],
                )
            tables = (users, user_preferences, providers, projects, usage, uploads)
            return {table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0) for table in tables}
    except OSError as exc:
        raise GatewayError(f"the application cannot be filled: {exc}") from None
