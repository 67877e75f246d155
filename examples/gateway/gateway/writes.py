# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate that every write passes, so that writes can be paused for a moment while reads go on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.logs import audited


class WritesPaused(Exception):
    """A write was not admitted; `retry_after` in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("writes are paused")
        self.retry_after = retry_after


class PauseFailed(Exception):
    """Writes in flight did not finish in time, or the server is stopping; writes are not paused."""


class WriteGate:
    """Lives in one event loop. A pause belongs to the process: it ends with it."""

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._in_flight = self._waiting = 0
        self._pause_id: str | None = None
        self._deadline = 0.0  # of the event loop's monotonic clock
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._changed = asyncio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _remaining(self) -> float:
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def _until(self, deadline: float) -> bool:
        """Wait for any change; False once `deadline` has passed."""
        timeout = deadline - asyncio.get_running_loop().time()
        if timeout <= 0:
            return False
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def write(self) -> AsyncIterator[None]:
        """Admit one write, waiting while writes are paused; WritesPaused if that takes too long."""
        give_up = asyncio.get_running_loop().time() + self._wait_seconds
        self._waiting += 1
        try:
            while self._pause_id is not None:
                if self._stopping or not await self._until(give_up):
                    raise WritesPaused(max(1, round(self._remaining())))
        finally:
            self._waiting -= 1
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._wake()

    async def pause(self, seconds: float, drain_seconds: float) -> dict[str, Any]:
        """Hold new writes for `seconds` from now and return once none is in flight.

        Pausing again renews the deadline and keeps the id. PauseFailed, and no pause, if writes in flight take
        longer than `drain_seconds`.
        """
        if self._stopping:
            raise PauseFailed("the server is stopping")
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
        pause_id = self._pause_id = self._pause_id or secrets.token_hex(8)
        self._deadline = loop.time() + seconds
        self._timer = loop.call_later(seconds, self._end, "writes.expire")
        give_up = loop.time() + min(drain_seconds, seconds)
        while self._in_flight and self._pause_id == pause_id:
            if not await self._until(give_up):
                break
        if self._pause_id != pause_id:
            raise PauseFailed("the pause ended before the writes in flight did")
        if self._in_flight:
            count = self._in_flight
            self._end("writes.pause_failed")
            raise PauseFailed(f"{count} writes in flight did not finish within {min(drain_seconds, seconds):g} s")
        audited("writes.pause", pause_id=pause_id, seconds=seconds)
        return self.state()

    def resume(self) -> dict[str, Any]:
        """End the pause; the answer says whether one was still held, and which."""
        ended = {"was_paused": self._pause_id is not None, "pause_id": self._pause_id}
        if self._pause_id is not None:
            self._end("writes.resume")
        return ended

    def _end(self, action: str) -> None:
        if self._timer:
            self._timer.cancel()
        audited(action, pause_id=self._pause_id)
        self._pause_id = self._timer = None
        self._wake()

    def stop(self) -> None:
        """Turn away the writes that wait: admitting them would break the promise given to who paused."""
        self._stopping = True
        self._wake()

    def state(self) -> dict[str, Any]:
        return {
            "paused": self._pause_id is not None,
            "pause_id": self._pause_id,
            "remaining_seconds": round(self._remaining(), 3) if self._pause_id else 0.0,
            "in_flight": self._in_flight,
            "waiting": self._waiting,
        }
