# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: python -m gateway COMMAND --root DIR."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway import GatewayError, __version__
from gateway import settings as configuration
from gateway.database import Database, add_providers, connect, known_revisions, reason

NOT_PAUSED = 1
NOT_RUNNING = 3  # as init scripts answer `status`


class NotRunning(GatewayError):
    pass


def _number(kind: type, low: float) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"number from {low:g}"
    return parse


def _colour(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,32}", text):
        raise ValueError
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description=f"A small LLM gateway, version {__version__}.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="application root (default: .)")
        return command

    whole, above = _number(int, 0), _number(float, 0.001)
    port = _number(int, 0)
    init = add("init", "create a new application")
    init.add_argument("--port", type=port, default=8080)
    init.add_argument("--host", default="127.0.0.1")
    url = init.add_mutually_exclusive_group()
    url.add_argument(
        "--database-url", metavar="URL", default=configuration.DATABASE_URL, help="an empty database of PostgreSQL, or an SQLite file"
    )
    url.add_argument(
        "--database-url-file", type=Path, metavar="FILE", help="read the URL from FILE, where its password is not seen by everyone"
    )
    serve = add("serve", "serve in the foreground until SIGTERM")
    serve.add_argument("--port", type=port, help="instead of GATEWAY_PORT; 0 takes a free one")
    serve.add_argument("--colour", type=_colour, default="none", help="told in the X-Gateway-Colour header")
    migrate = add("migrate", "bring the database's schema to this version's")
    migrate.add_argument("--to", metavar="REV", help="to this revision instead, up or down")
    schema = add("schema", "print the schema's revision and the one this version needs")
    schema.add_argument(
        "--known", action="store_true", help="print the revisions that this version knows instead, oldest first; needs no root"
    )
    seed = add("seed", "fill a new application with rows and files")
    seed.add_argument("--rows", type=whole, default=5000, help="rows of usage")
    seed.add_argument("--projects", type=_number(int, 1), default=20)
    seed.add_argument("--uploads", type=whole, default=50)
    seed.add_argument("--upload-bytes", type=whole, default=16384)
    seed.add_argument("--seed", type=int, default=1)
    add("pause", "hold writes for some seconds; returns once none is in flight").add_argument("seconds", type=above)
    add("resume", "end a pause of writes")
    add("paused", "print the id of the pause and end with 0 while writes are paused, else end with 1")
    add("status", "print process, port, readiness, version and schema revision")
    traffic = add("traffic", "write through HTTP for a while and keep a ledger of what was acknowledged")
    traffic.add_argument("--seconds", type=above, default=10.0)
    traffic.add_argument("--rate", type=above, default=20.0, help="requests a second, at most")
    traffic.add_argument("--ledger", type=Path, required=True, help="a file outside the root; appended to")
    check = add("ledger-check", "compare a ledger with the rows and files that are there")
    check.add_argument("--ledger", type=Path, required=True)
    check.add_argument("--until", metavar="TIME", help="only what was acknowledged up to this time (RFC 3339)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.umask(0o027)  # the database holds the providers' keys
    try:
        return _run(options, options.root.resolve())
    except NotRunning as exc:
        print(f"gateway: {exc}", file=sys.stderr)
        return NOT_RUNNING
    except GatewayError as exc:
        print(f"gateway: {exc}", file=sys.stderr)
    except sa.exc.DBAPIError as exc:
        print(f"gateway: {options.command}: the database answers: {reason(exc)}", file=sys.stderr)
    except OSError as exc:
        print(f"gateway: {options.command}: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("gateway: interrupted", file=sys.stderr)
    return 2


def _print(value: dict[str, Any]) -> None:
    print(json.dumps(value))


def _run(options: argparse.Namespace, root: Path) -> int:
    if options.command == "init":
        _print({"root": str(root), "revision": _init(options, configuration.Layout(root))})
        return 0
    if options.command == "schema" and options.known:
        print("\n".join(reversed(known_revisions())))
        return 0
    settings = configuration.load(root)
    match options.command:
        case "serve":
            from gateway.server import serve

            serve(settings, options.port, options.colour)
        case "pause" | "resume":
            body = {"seconds": options.seconds} if options.command == "pause" else {}
            _print(_call(settings, f"/admin/writes/{options.command}", body)[1])
        case "paused":
            state = _call(settings, "/admin/writes")[1]
            if state["paused"]:
                print(state["pause_id"])
            return 0 if state["paused"] else NOT_PAUSED
        case "status":
            return _status(settings)
        case "traffic":
            from gateway.traffic import traffic

            if options.ledger.resolve().is_relative_to(root):
                raise GatewayError("--ledger must be outside the root: it has to survive what happens to it")
            _print(traffic(_running(settings)[1], options.seconds, options.rate, options.ledger))
        case _:
            database = connect(settings.database, f"gateway-{options.command}")
            try:
                return _with_database(options, settings, database)
            finally:
                database.close()
    return 0


def _init(options: argparse.Namespace, layout: configuration.Layout) -> str:
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


def _with_database(options: argparse.Namespace, settings: configuration.Settings, database: Database) -> int:
    match options.command:
        case "migrate":
            before, after = database.migrate(options.to)
            _print({"before": before, "after": after, "changed": before != after})
        case "schema":
            current, head = database.revision(), known_revisions()[0]
            _print({"revision": current, "head": head, "current": current == head})
        case "seed":
            from gateway.seed import seed

            database.check_schema()
            started = time.monotonic()
            sizes = (options.rows, options.projects, options.uploads, options.upload_bytes)
            counts = seed(settings, database, *sizes, options.seed)
            _print({"rows": counts, "seconds": round(time.monotonic() - started, 1)})
        case "ledger-check":
            from gateway.traffic import ledger_check

            database.check_schema()
            result = ledger_check(settings.layout, database, options.ledger, options.until)
            _print(result)
            return 1 if result["missing"] or result["different"] else 0
    return 0


def _running(settings: configuration.Settings) -> tuple[int, int]:
    from gateway.server import running

    found = running(settings.layout)
    if found is None:
        raise NotRunning(f"no server is running for {settings.layout.root}")
    return found


def _call(settings: configuration.Settings, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Call the running server as administrator; GET without a body. The token is read from .env, never from argv."""
    port = _running(settings)[1]
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "localhost") else settings.host
    host = f"[{host}]" if ":" in host else host
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{host}:{port}{path}", data)
    request.add_header("Authorization", f"Bearer {settings.admin_token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        found = json.load(exc)
        if body is None:
            return exc.code, found
        raise GatewayError(f"the server on port {port} refused: {found.get('error')}") from None
    except (OSError, ValueError) as exc:
        raise GatewayError(f"the server on port {port} does not answer: {exc}") from None


def _status(settings: configuration.Settings) -> int:
    state: dict[str, Any] = {"running": False, "root": str(settings.layout.root), "head": known_revisions()[0]}
    try:
        state["pid"], state["port"] = _running(settings)
        code, ready = _call(settings, "/readyz")
        state.update(running=True, ready=code == 200, checks=ready["checks"])
        state.update(version=ready["version"], colour=ready["colour"], writes=_call(settings, "/admin/writes")[1])
    except NotRunning:
        pass
    try:
        with contextlib.closing(connect(settings.database, "gateway-status")) as database:
            state["revision"] = database.revision()
    except GatewayError as exc:
        state["database"] = str(exc)
    _print(state)
    return 0 if state["running"] else NOT_RUNNING
