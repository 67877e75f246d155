# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: python -m gateway COMMAND --root DIR.

What the database and the server need is imported where it is needed: writes wait for as long as the commands of a pause take.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from gateway import GatewayError, __version__
from gateway import settings as configuration
from gateway.client import NOT_RUNNING, NotRunning, call, require_running, show

NOT_PAUSED = 1


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
    except OSError as exc:
        print(f"gateway: {options.command}: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("gateway: interrupted", file=sys.stderr)
    except Exception as exc:
        from sqlalchemy.exc import DBAPIError

        from gateway.database import reason

        if not isinstance(exc, DBAPIError):
            raise
        print(f"gateway: {options.command}: the database answers: {reason(exc)}", file=sys.stderr)
    return 2


def _run(options: argparse.Namespace, root: Path) -> int:
    if options.command == "init":
        from gateway import commands

        show({"root": str(root), "revision": commands.init(options, configuration.Layout(root))})
        return 0
    if options.command == "schema" and options.known:
        from gateway import commands

        print(commands.known())
        return 0
    settings = configuration.load(root)
    match options.command:
        case "serve":
            from gateway.server import serve

            serve(settings, options.port, options.colour)
        case "pause" | "resume":
            body = {"seconds": options.seconds} if options.command == "pause" else {}
            show(call(settings, f"/admin/writes/{options.command}", body)[1])
        case "paused":
            state = call(settings, "/admin/writes")[1]
            if state["paused"]:
                print(state["pause_id"])
            return 0 if state["paused"] else NOT_PAUSED
        case "status":
            from gateway import commands

            return commands.status(settings)
        case "traffic":
            from gateway.traffic import traffic

            if options.ledger.resolve().is_relative_to(root):
                raise GatewayError("--ledger must be outside the root: it has to survive what happens to it")
            show(traffic(require_running(settings)[1], options.seconds, options.rate, options.ledger))
        case _:
            from gateway import commands

            return commands.with_database(options, settings)
    return 0
