# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands do that need the database."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

from gateway import GatewayError
from gateway import settings as configuration
from gateway.client import NOT_RUNNING, NotRunning, call, require_running, show
from gateway.database import Database, add_providers, connect, known_revisions


def init(options: argparse.Namespace, layout: configuration.Layout) -> str:
    """Make an application in a root and a database that are both empty; the schema's revision."""
    text = options.database_url_file.read_text(encoding="utf-8").strip() if options.database_url_file else options.database_url
    url = configuration.database_url(layout, text)
    configuration.refuse_existing(layout)
    if url.get_backend_name() == "sqlite":
        if Path(url.database or "").exists():
            raise GatewayError(f"{url.database} exists: restore the application that it belongs to, or choose another file")
    else:
        with contextlib.closing(connect(url, "gateway-init")) as database:
            count = database.tables()
            if count:
                raise GatewayError(f"{database.name} has {count} tables: restore the application that it belongs to, or give an empty one")
    configuration.create(layout, options.host, options.port, text)
    try:
        with contextlib.closing(connect(url, "gateway-init", create=True)) as database:
            revision = database.migrate()[1]
            add_providers(database, configuration.load(layout.root).providers)
    except BaseException:
        layout.env.unlink()  # both were made above; without them the same command can be given again
        layout.config.unlink()
        raise
    return revision


def known() -> str:
    """Return the revisions that this version knows, the oldest first, one a line."""
    return "\n".join(reversed(known_revisions()))


def with_database(options: argparse.Namespace, settings: configuration.Settings) -> int:
    with contextlib.closing(connect(settings.database, f"gateway-{options.command}")) as database:
        return _with_database(options, settings, database)


def _with_database(options: argparse.Namespace, settings: configuration.Settings, database: Database) -> int:
    match options.command:
        case "migrate":
            before, after = database.migrate(options.to)
            show({"before": before, "after": after, "changed": before != after})
        case "schema":
            current, head = database.revision(), known_revisions()[0]
            show({"revision": current, "head": head, "current": current == head})
        case "seed":
            from gateway.seed import seed

            database.check_schema()
            started = time.monotonic()
            sizes = (options.rows, options.projects, options.uploads, options.upload_bytes)
            counts = seed(settings, database, *sizes, options.seed)
            show({"rows": counts, "seconds": round(time.monotonic() - started, 1)})
        case "ledger-check":
            from gateway.traffic import ledger_check

            database.check_schema()
            result = ledger_check(settings.layout, database, options.ledger, options.until)
            show(result)
            return 1 if result["missing"] or result["different"] else 0
    return 0


def status(settings: configuration.Settings) -> int:
    state: dict[str, Any] = {"running": False, "root": str(settings.layout.root), "head": known_revisions()[0]}
    try:
        state["pid"], state["port"] = require_running(settings)
        code, ready = call(settings, "/readyz")
        state.update(running=True, ready=code == 200, checks=ready["checks"])
        state.update(version=ready["version"], colour=ready["colour"], writes=call(settings, "/admin/writes")[1])
    except NotRunning:
        pass
    try:
        with contextlib.closing(connect(settings.database, "gateway-status")) as database:
            state["revision"] = database.revision()
    except GatewayError as exc:
        state["database"] = str(exc)
    show(state)
    return 0 if state["running"] else NOT_RUNNING
