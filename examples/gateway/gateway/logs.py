# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four JSON Lines files in data/logs; each line one object, times in UTC (RFC 3339)."""

from __future__ import annotations

import json
import logging
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
app = logging.getLogger("gateway")
access = logging.getLogger("gateway.access")
audit = logging.getLogger("gateway.audit")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ReopeningHandler(logging.FileHandler):
    """Appends to a file and opens it anew by name when told to, after somebody renamed it."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o640))

    def reopen(self) -> None:
        self.acquire()
        try:
            old, self.stream = self.stream, self._open()  # if the open fails the old file stays in use
            if old is not None:
                old.close()
        finally:
            self.release()


class Logs:
    def __init__(self, folder: Path, level: str) -> None:
        self._handlers: list[ReopeningHandler] = []
        root = logging.getLogger()
        self._add(root, folder / "app.log")
        self._add(root, folder / "error.log", logging.ERROR)
        for logger, name in ((access, "access.log"), (audit, "audit.log")):
            logger.propagate = False
            logger.setLevel(logging.INFO)
            self._add(logger, folder / name)
        self.set_level(level)

    def _add(self, logger: logging.Logger, path: Path, level: int = logging.NOTSET) -> None:
        handler = ReopeningHandler(path)
        handler.setFormatter(JsonFormatter())
        handler.setLevel(level)
        logger.addHandler(handler)
        self._handlers.append(handler)

    def set_level(self, level: str) -> None:
        """Set what app.log gets; libraries stay at INFO or above, access and audit are always complete."""
        logging.getLogger().setLevel(max(logging.getLevelName(level), logging.INFO))
        app.setLevel(level)

    def reopen(self) -> None:
        for handler in self._handlers:
            handler.reopen()
        app.info("log files reopened")


def audited(action: str, **fields: Any) -> None:
    audit.info(action, extra={"fields": fields})
