# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A moment in which the application writes nothing, by its own commands, and that ends whatever happens to us.

Three see to its end: this process, a watchdog that outlives it, and whoever finds the record later (the next run, a unit at
boot). What ends a pause may be run more than once, so none of them has to know of the others.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from datetime import timedelta
from typing import Callable, ContextManager, List, NamedTuple, Optional, Sequence, Tuple

from .._core.clock import Clock, parse_rfc3339, rfc3339
from .._core.command import CommandError, CommandTimeout, run
from .._core.errors import OpskitError
from .._core.files import fsync_dir, make_dir, publish, publish_json, read_json
from .._core.lock import flock

SYSTEMD = "/run/systemd/system"
"""Exists where systemd is the init that runs: sd_booted(3)."""

KINDS = {"hook": "paused", "stop": "stopped"}
"""What each kind guarantees."""

END_S = 120.0
"""What ends a pause may take, longer than systemd waits for a start."""
CHECK_S = 15.0
SETTLE_S = 10.0
"""A service may show as running some time after its start command is done."""
WATCHDOG_S = 15.0
"""In this time the watchdog has to have said that it watches."""
BUSY_S = 30.0
"""What a watchdog that is just ending the pause of a dead run is waited for."""
POLL_S = 0.05

# The watchdog waits for a lock and not for the end of a pipe, because systemd starts it, who would not hand a pipe on.
# The lock is free once this process and all that it has started to begin the pause are gone: those hold it as their standard
# input. A child that was only being forked when its parent was killed holds it for an instant, so it is waited for, never tried.
WATCHDOG = r"""#!/bin/sh
# Written anew for each pause of writes. Ends that pause when the run that began it is dead or late, also after a reboot.
# Does nothing once pause.json beside it is gone. Needs a POSIX shell, coreutils, grep, and flock of util-linux.
set -u
PATH=@PATH@
export PATH
folder=@FOLDER@
id=@ID@

is_there() { grep -qsF "\"$id\"" "$folder/pause.json"; }

end() { timeout -k 5 @END_S@ @END@ </dev/null 8>&- 9>&-; }

# Hundredths of a second since boot, which no change of the clock moves.
now() {
    read -r now rest </proc/uptime
    now=${now%.*}${now#*.}
}

main() {
    umask 077
    cd / || exit 1
    [ "${1:-}" != detached ] || exec >"$folder/watchdog.log" 2>&1 </dev/null
    now
    deadline=$((now + @SECONDS@ * 100))
    exec 9>>"$folder/lock" 8>>"$folder/watchdog" || exit 1
    flock -w 10 8 || exit 1
    printf %s "$id" >"$folder/watchdog" || exit 1
    tries=0
    while is_there; do
        flock -w 0.5 9 || { now; [ "$now" -ge "$deadline" ]; } || continue
        is_there || break
        if end; then
            rm -f "$folder/pause.json"
            echo "pause $id: ended, because the run that began it is dead or late"
            break
        fi
        tries=$((tries + 1))
        if [ "$tries" -ge 8 ]; then
            echo "pause $id: what ends it failed $tries times; the next run or boot tries again" >&2
            exit 1
        fi
        flock -u 9
        sleep "$tries"
    done
    exit 0
}

main "$@"
"""


class Record(NamedTuple):
    """What has to be known to end a pause that somebody else began."""

    kind: str
    end: List[str]
    begun: str
    """RFC 3339, UTC."""
    seconds: int
    damage: str = ""


class CommandPause:
    """Holds writes, or stops the application, by commands; implements the protocol ``Pause``.

    :param kind: ``hook``: ``begin`` takes the maximum seconds as its last argument and expires by itself, ``check`` ends with 0 while
        writes are paused and prints what tells one pause from the next. ``stop``: ``begin`` and ``end`` stop and start, ``check``
        ends with 0 while the application runs
    :param check: may be empty
    :param seconds: how long a pause may last; after that the watchdog ends it
    :param state_dir: absolute path; what has to survive a crash is kept in ``pause/`` below it
    """

    def __init__(
        self, kind: str, begin: Sequence[str], end: Sequence[str], check: Sequence[str], seconds: int, state_dir: str, clock: Clock
    ) -> None:
        self.guarantee = KINDS[kind]
        self._kind = kind
        self._seconds = seconds
        self._begin = [*begin, str(seconds)] if kind == "hook" else list(begin)
        self._end = list(end)
        self._check = list(check)
        self._state_dir = state_dir
        self._folder = os.path.join(state_dir, "pause")
        self._record = os.path.join(self._folder, "pause.json")
        self._lock_path = os.path.join(self._folder, "lock")
        self._clock = clock
        self._lock: Optional[ContextManager[int]] = None
        self._handle = -1
        self._id = ""
        self._since = 0.0
        self._seen = b""
        self._idle = False
        self._begun = False

    # what a run that died has left -----------------------------------------------------------------

    def recover(self) -> str:
        """End what a run that died has left behind, and say what that was; empty when there was nothing.

        What can't be ended is said too and stays for the next one: it is no reason to go without a backup.
        """
        if not os.path.lexists(self._record):
            return ""
        try:
            with flock(self._lock_path, wait_s=BUSY_S):
                if not os.path.lexists(self._record):
                    return ""
                return self._end_of(self._read())
        except OpskitError as error:
            return f"the pause of another run is still held, or its watchdog is just ending it ({error})"

    def _read(self) -> Record:
        try:
            value = read_json(self._record)
            end = [str(word) for word in value["end"]]
            parse_rfc3339(value["begun"])
            if value["kind"] not in KINDS or not end:
                raise ValueError("it is not complete")
            return Record(value["kind"], end, value["begun"], int(value["seconds"]))
        except (OpskitError, KeyError, TypeError, ValueError) as error:
            return Record(self._kind, self._end, rfc3339(self._clock.now()), self._seconds, f" (its record can't be read: {error})")

    def _end_of(self, left: Record) -> str:
        stopped = left.kind == "stop"
        died = (
            f"a run that {'stopped the application' if stopped else 'paused writes'} at {left.begun} died before it "
            f"{'started it again' if stopped else 'resumed them'}{left.damage}"
        )
        try:
            run(left.end, END_S, env=dict(os.environ))
        except CommandError as error:
            over = parse_rfc3339(left.begun) + timedelta(seconds=left.seconds) < self._clock.now()
            if over and not stopped:
                # Most likely the application does not run. There is nothing to resume any more, by the contract of the hook.
                self._forget()
                return f"{died}; to resume failed now ({error}), but that pause has expired by itself"
            todo = f"Start the application by hand: {shlex.join(left.end)}" if stopped else "It expires by itself"
            return f"{died}; {'to start it' if stopped else 'to resume'} failed now ({error}). {todo}"
        self._forget()
        return f"{died}; {'it was started' if stopped else 'writes were resumed'} now"

    # the pause itself ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Have the application write nothing any more. Raises :class:`OpskitError`; then it goes on writing."""
        self._idle = self._begun = False
        try:
            self._take_lock()
            if self._kind == "stop" and self._check and not self._is_so()[0]:
                # Who has stopped it wants it stopped.
                self._idle = True
                self._since = self._clock.monotonic()
                return
            self._prepare()
        except OSError as error:
            self._release()
            raise OpskitError(
                f"a pause could not be prepared ({error.strerror or error})", os.fsdecode(error.filename or self._folder), "Mend this"
            ) from None
        except BaseException:
            self._release()
            raise
        try:
            self._pause()
        except OpskitError as error:
            raise self._undone(error) from None
        except BaseException:
            # The lock goes, the record stays: the watchdog does the rest.
            self._release()
            raise

    def _take_lock(self) -> None:
        make_dir(self._state_dir)
        make_dir(self._folder)
        lock = flock(self._lock_path)
        self._handle = lock.__enter__()
        self._lock = lock
        if os.path.lexists(self._record):
            raise OpskitError(
                "the pause of an earlier run has not been ended yet, so none is begun",
                self._record,
                "Have the application run and write, then run the same command again",
            )

    def _prepare(self) -> None:
        """Make sure that the pause will end, before it begins. A kill in here leaves a record, and nothing was paused."""
        # An earlier watchdog that is late would take this pause for its own. It goes within a second.
        with flock(os.path.join(self._folder, "watchdog"), wait_s=BUSY_S):
            pass
        self._id = "".join(self._clock.token() for _number in range(4))
        with publish(os.path.join(self._folder, "resume"), 0o700) as stream:
            stream.write(os.fsencode(self._script()))
        record = {
            "version": 1,
            "id": self._id,
            "kind": self._kind,
            "end": self._end,
            "begun": rfc3339(self._clock.now()),
            "seconds": self._seconds,
        }
        publish_json(self._record, record)
        # Before the watchdog counts, so that a pause is never believed to hold when the watchdog has ended it.
        self._since = self._clock.monotonic()
        try:
            self._start_watchdog()
        except OpskitError as error:
            self._forget()
            raise OpskitError(
                f"the watchdog that ends the pause if this run dies could not be started, so nothing was paused ({error})",
                self._folder,
                "Mend this and run the same command again",
            ) from None

    def _script(self) -> str:
        values = {
            "PATH": shlex.quote(os.environ.get("PATH", os.defpath)),
            "FOLDER": shlex.quote(self._folder),
            "ID": self._id,
            "END_S": f"{END_S:g}",
            "SECONDS": str(self._seconds),
            "END": " ".join(shlex.quote(word) for word in self._end),
        }
        return re.sub(r"@([A-Z_]+)@", lambda found: values[found.group(1)], WATCHDOG)

    def _start_watchdog(self) -> None:
        """Start it where neither a kill of this process's group nor of its cgroup reaches it, and wait until it watches."""
        script = os.path.join(self._folder, "resume")
        if os.geteuid() == 0 and os.path.isdir(SYSTEMD) and shutil.which("systemd-run"):
            unit = f"--unit=opskit-pause-{self._id}"
            # KillMode: what it starts may be the application itself, which has to outlive this unit.
            run(["systemd-run", "--collect", "--quiet", unit, "--property=KillMode=process", "--", "/bin/sh", script], WATCHDOG_S)
        else:
            run(["setsid", "--fork", "/bin/sh", script, "detached"], WATCHDOG_S, env=dict(os.environ))
        said = os.path.join(self._folder, "watchdog")
        if not self._wait(lambda: _content(said) == self._id.encode("ascii"), WATCHDOG_S):
            raise OpskitError(f"it did not say within {WATCHDOG_S:g} s that it watches", script)

    def _pause(self) -> None:
        what = "stopping the application" if self._kind == "stop" else "pausing writes"
        # The lock is its standard input: what it has started and is still at work when this process is killed keeps the watchdog waiting.
        self._command(self._begin, self._seconds, what, stdin=self._handle)
        self._begun = True
        if not self._check:
            return
        if self._kind == "stop":
            if not self._wait(lambda: not self._is_so()[0], self._seconds - (self._clock.monotonic() - self._since)):
                raise OpskitError("the application still runs after it was stopped", self._check[0], "See why it does not stop")
            return
        paused, self._seen = self._is_so()
        if not paused:
            raise OpskitError("the application says that it does not hold its writes after it was asked to", self._check[0], "See its log")

    def _undone(self, error: OpskitError) -> OpskitError:
        """Return what to raise after a pause that failed to begin, with the application writing again."""
        try:
            self._command(self._end, END_S, "ending it again")
        except OpskitError as second:
            if self._kind == "hook" and not self._begun and not isinstance(error, _Late):
                # A hook that fails pauses nothing, and an application that does not run can do neither.
                self._forget()
                self._release()
                return error
            self._release()
            todo = "Make sure by hand that the application runs and writes; the watchdog goes on trying for half a minute"
            return OpskitError(f"{error.what}; then {second.what}", error.where, todo)
        self._forget()
        self._release()
        return error

    def lost(self) -> str:
        """Say why the pause has not held from its beginning to this moment; empty when it has."""
        try:
            reason = self._changed()
        except OpskitError as error:
            reason = f"it can't be known whether the pause has held: {error}"
        # Last, so that a slow answer counts.
        gone = self._clock.monotonic() - self._since
        if gone >= self._seconds:
            return f"{gone:.1f} s have gone by, and a pause lasts {self._seconds} s at most"
        return reason

    def _changed(self) -> str:
        if not self._idle and self._id.encode("ascii") not in _content(self._record):
            return "its watchdog has ended it"
        if not self._check:
            return ""
        is_so, seen = self._is_so()
        if self._kind == "stop":
            return "the application was started meanwhile" if is_so else ""
        if not is_so:
            return "the application does not hold its writes any more"
        return "" if seen == self._seen else "the application holds its writes, but by another pause than the one that was begun"

    def end(self) -> None:
        """Let the application write again. Raises :class:`OpskitError` when it does not; then the watchdog goes on trying."""
        try:
            if self._idle:
                return
            what = "starting the application again" if self._kind == "stop" else "resuming writes"
            self._command(self._end, END_S, what)
            self._require_going_on()
            self._forget()
        finally:
            self._release()

    def _require_going_on(self) -> None:
        if not self._check:
            return
        if self._kind == "stop":
            if not self._wait(lambda: self._is_so()[0], SETTLE_S):
                raise OpskitError(
                    f"the application does not run {SETTLE_S:g} s after it was started again", self._check[0], "See its log, and start it"
                )
        elif self._is_so() == (True, self._seen):
            raise OpskitError("the application still holds its writes after they were resumed", self._check[0], "See its log")

    # parts -----------------------------------------------------------------------------------------

    def _command(self, argv: List[str], deadline_s: float, what: str, stdin: int = subprocess.DEVNULL) -> None:
        try:
            # With the environment as it is: the application may be started by this, and is not to inherit ours.
            run(argv, deadline_s, env=dict(os.environ), stdin=stdin)
        except CommandError as error:
            kind = _Late if isinstance(error, CommandTimeout) else OpskitError
            raise kind(f"{what} failed: {error.what}", _shown(argv), "See that this command works on the host") from None

    def _is_so(self) -> Tuple[bool, bytes]:
        """Return whether the check ended with 0, and what it printed. Raises :class:`OpskitError` when it could not be run."""
        try:
            # 126 and 127 say that there was nothing to run.
            done = run(self._check, CHECK_S, env=dict(os.environ), ok=range(126))
        except CommandError as error:
            raise OpskitError(f"asking the application failed: {error.what}", _shown(self._check), "Mend this command") from None
        return done.returncode == 0, done.stdout.strip()

    def _wait(self, reached: Callable[[], bool], seconds: float) -> bool:
        deadline = self._clock.monotonic() + seconds
        while not reached():
            if self._clock.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _forget(self) -> None:
        """Remove the record; the watchdog may have been first."""
        try:
            os.unlink(self._record)
        except FileNotFoundError:
            return
        fsync_dir(self._folder)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None


class _Late(OpskitError):
    """A command ran over its deadline, so nobody knows what it has done."""


def _shown(argv: Sequence[str]) -> str:
    """Return a command on one line; an argument may be a script."""
    return " ".join(shlex.join(argv).split())


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""
