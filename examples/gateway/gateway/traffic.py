# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bounded client that writes through HTTP, keeps a ledger of what was acknowledged, and checks one."""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import random
import secrets
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway import GatewayError
from gateway.database import Database, projects, providers, uploads, usage, user_preferences, users
from gateway.settings import Layout, canonical

USAGE_FIELDS = ("project", "provider", "model", "type", "tokens")


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


class Client:
    """JSON over one kept connection; anything but an answer of the 2xx range is counted as not acknowledged."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.failures: collections.Counter[str] = collections.Counter()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = body if isinstance(body, bytes) or body is None else canonical(body)
        try:
            self._connection.request(method, urllib.parse.quote(path), data)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            self.failures[type(exc).__name__] += 1
            return None
        if not 200 <= answer.status < 300:
            self.failures[str(answer.status)] += 1
            return None
        return json.loads(content)


def traffic(port: int, seconds: float, rate: float, ledger: Path) -> dict[str, Any]:
    """Write `rate` times a second for `seconds`; every acknowledged write is one line of `ledger`, on disk at once."""
    client, run, rng = Client(port), secrets.token_hex(4), random.Random()
    slugs: list[str] = []
    acknowledged: collections.Counter[str] = collections.Counter()
    started, number = time.monotonic(), 0
    with ledger.open("a", encoding="utf-8") as stream:

        def record(table: str, key: str | int, sha256: str) -> None:
            at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            stream.write(json.dumps({"time": at, "table": table, "id": key, "sha256": sha256}) + "\n")
            stream.flush()
            acknowledged[table] += 1

        while time.monotonic() - started < seconds:
            kind = "project" if not slugs else ("chat", "upload", "chat", "user", "chat", "file", "project")[number % 7]
            name = f"traffic-{run}-{number:06d}"
            number += 1
            if kind == "project":
                made = client.call("POST", "/api/projects", {"slug": name, "title": name, "owner": f"owner-{run}"})
                if made:
                    slugs.append(name)
                    record("projects", name, _hash([made["slug"], made["title"], made["owner"]]))
            elif kind == "chat":
                slug = rng.choice(slugs)
                done = client.call("POST", "/api/chat", {"project": slug, "prompt": f"prompt {number} " * 80})
                for row in done["usage"] if done else ():
                    values = [slug, done["provider"], done["model"], row["type"], row["tokens"]]
                    record("usage", row["id"], _hash(dict(zip(USAGE_FIELDS, values, strict=True))))
            elif kind == "user":
                preferences = {"theme": rng.choice(["light", "dark"]), "number": number}
                if client.call("PUT", f"/api/users/{name}/preferences", preferences) is not None:
                    record("user_preferences", name, _hash(preferences))
            else:
                content = rng.randbytes(rng.randrange(1, 20_000))
                folder = "uploads" if kind == "upload" else f"projects/{rng.choice(slugs)}/files"
                stored = client.call("PUT", f"/api/{folder}/{name}.bin", content)
                if stored:
                    record("uploads", stored["path"], hashlib.sha256(content).hexdigest())
            time.sleep(max(0.0, min(started + number / rate, started + seconds) - time.monotonic()))
    return {"requests": number, "acknowledged": dict(acknowledged), "failed": dict(client.failures)}


def ledger_check(layout: Layout, database: Database, ledger: Path, until: str | None) -> dict[str, Any]:
    """Compare what was acknowledged up to `until` (RFC 3339, UTC) with rows and files, past the server."""
    limit = _time(until) if until else None
    checked, missing, different = 0, [], []
    with ledger.open(encoding="utf-8") as stream, database.engine.begin() as connection:
        for number, line in enumerate(stream, 1):
            try:
                entry = json.loads(line)
                at, table, key, sha256 = (entry[name] for name in ("time", "table", "id", "sha256"))
            except (ValueError, KeyError, TypeError):
                raise GatewayError(f"{ledger} line {number} is not an entry of a ledger") from None
            if limit and _time(at) > limit:
                continue
            checked += 1
            found = _found(layout, connection, table, key)
            if found is None:
                missing.append(f"{table} {key}")
            elif found != sha256:
                different.append(f"{table} {key}")
    return {"checked": checked, "missing": missing, "different": different}


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise GatewayError(f"{text!r} is not a time such as 2026-11-23T02:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _found(layout: Layout, connection: sa.engine.Connection, table: str, key: Any) -> str | None:
    """The hash of what is there now for one ledger entry, None when nothing is."""
    if table == "projects":
        columns: Any = sa.select(projects.c.slug, projects.c.title, users.c.name).select_from(projects.outerjoin(users))
        row = connection.execute(columns.where(projects.c.slug == key)).first()
        return _hash(list(row)) if row else None
    if table == "usage":
        columns = sa.select(projects.c.slug, providers.c.name, usage.c.model, usage.c.type, usage.c.tokens)
        row = connection.execute(columns.select_from(usage.join(projects).join(providers)).where(usage.c.id == key)).first()
        return _hash(dict(zip(USAGE_FIELDS, row, strict=True))) if row else None
    if table == "user_preferences":
        columns = sa.select(user_preferences.c.key, user_preferences.c.value)
        rows = connection.execute(columns.select_from(user_preferences.join(users)).where(users.c.name == key)).all()
        return _hash(dict(tuple(row) for row in rows)) if rows else None
    if table == "uploads":
        recorded = connection.execute(sa.select(uploads.c.sha256).where(uploads.c.path == key)).scalar()
        path = layout.root / key
        if recorded is None or not path.is_file():
            return None
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        return actual if actual == recorded else f"row {recorded}, file {actual}"
    raise GatewayError(f"the ledger names a table {table!r} that this version does not know")
