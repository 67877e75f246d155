# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults for exercises: each is off at 0."""

from __future__ import annotations

import threading

from gateway import logs
from gateway.database import Database


class Faults:
    def __init__(self, database: Database, values: dict[str, float]) -> None:
        self._database = database
        self._leaked: list[bytearray] = []
        self._failures_due = 0.0
        self._lock_released = threading.Event()
        self._lock_holder: threading.Thread | None = None
        self.values: dict[str, float] = {}
        self.set(values)

    def set(self, values: dict[str, float]) -> None:
        """Change the named faults; hold_lock_seconds takes the write lock now, 0 gives it back."""
        self.values.update(values)
        if not self.values.get("leak_bytes"):
            self._leaked.clear()
        if "hold_lock_seconds" in values:
            self.release_lock()
            self.values["hold_lock_seconds"] = values["hold_lock_seconds"]
            if values["hold_lock_seconds"]:
                self._lock_holder = threading.Thread(target=self._hold_lock, args=(values["hold_lock_seconds"],), daemon=True)
                self._lock_holder.start()

    def release_lock(self) -> None:
        self._lock_released.set()
        if self._lock_holder:
            self._lock_holder.join()
        self._lock_released.clear()
        self.values["hold_lock_seconds"] = 0.0

    def _hold_lock(self, seconds: float) -> None:
        try:
            with self._database.writer.begin() as connection:
                self._database.lock(connection)
                logs.app.warning("fault: the database's write lock is held for %g s", seconds)
                self._lock_released.wait(seconds)
        except Exception:
            logs.app.exception("fault: the database's write lock could not be held")
        self.values["hold_lock_seconds"] = 0.0

    def leak(self) -> None:
        if self.values["leak_bytes"]:
            self._leaked.append(bytearray(b"\1") * int(self.values["leak_bytes"]))

    def fails(self) -> bool:
        """Whether this request is one of the share that error_rate asks for; evenly spread, not random."""
        self._failures_due += self.values["error_rate"]
        if self._failures_due < 1:
            return False
        self._failures_due -= 1
        return True
