# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pauses of an application that writes all the time; whatever is killed, it writes again."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import pause as module
from ansible_collections.opskit.runbooks.plugins.module_utils._application.pause import CommandPause
from ansible_collections.opskit.runbooks.plugins.module_utils._application.wiring import build_pause
from ansible_collections.opskit.runbooks.plugins.module_utils._core import lock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError

# Writes while no file "flag" is there, which says until when; a pause belongs to the process, as in most applications.
APPLICATION = """
import os, sys, time
os.chdir(sys.argv[1])
if os.path.exists("flag"):
    os.unlink("flag")
seen = ""
while True:
    try:
        with open("flag") as stream:
            name, until = stream.read().split()
        if float(until) < time.time():
            os.unlink("flag")
        if name != seen:
            seen = name
            with open("seen", "w") as stream:
                stream.write(name)
    except FileNotFoundError:
        with open("written", "ab") as stream:
            stream.write(b"x")
    time.sleep(0.005)
"""

# $1 is the command, $2 the folder of the application; what a test breaks or slows down stands in files there.
COMMANDS = r"""
set -eu
command=$1
cd "$2"
[ ! -e "slow-$command" ] || sleep "$(cat "slow-$command")"
[ ! -e "fail-$command" ] || { echo "no $command: $(cat "fail-$command")" >&2; exit 5; }
echo "$command" >>done
alive() { [ -s pid ] && grep -qs application "/proc/$(cat pid)/cmdline"; } # kill -0 takes a zombie for alive
case $command in
pause)
    name=$(cat /proc/sys/kernel/random/uuid)
    echo "$name $(($(date +%s) + $3 + 1))" >flag.new # whole seconds: not before its time
    mv flag.new flag
    while alive && [ "$(cat seen 2>/dev/null)" != "$name" ]; do sleep 0.01; done
    ;;
resume) rm -f flag ;;
paused) read -r name until 2>/dev/null <flag && echo "$name" ;;
stop)
    ! alive || kill "$(cat pid)"
    while alive; do sleep 0.01; done
    ;;
start)
    alive || {
        setsid "@PYTHON@" application.py . </dev/null >/dev/null 2>&1 &
        echo $! >pid
    }
    while ! alive; do sleep 0.01; done
    ;;
status) alive ;;
esac
"""


class Application:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "an 'app'"
        self.folder.mkdir()
        self.state = folder / "state of $it"
        (self.folder / "application.py").write_text(APPLICATION)
        (self.folder / "commands").write_text(COMMANDS.replace("@PYTHON@", sys.executable))

    def argv(self, command: str) -> List[str]:
        return ["sh", str(self.folder / "commands"), command, str(self.folder)]

    def call(self, command: str) -> int:
        more = ["60"] if command == "pause" else []
        return subprocess.run(self.argv(command) + more, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode

    def hook(self, seconds: int = 30, asks: bool = True, **commands: List[str]) -> CommandPause:
        return self.pause("hook", ("pause", "resume", "paused" if asks else ""), seconds, commands)

    def stop(self, seconds: int = 30, asks: bool = True, **commands: List[str]) -> CommandPause:
        return self.pause("stop", ("stop", "start", "status" if asks else ""), seconds, commands)

    def pause(self, kind: str, names: Tuple[str, str, str], seconds: int, commands: Dict[str, List[str]]) -> CommandPause:
        argv = {part: self.argv(name) if name else [] for part, name in zip(("begin", "end", "check"), names)}
        argv.update(commands)
        return CommandPause(kind, argv["begin"], argv["end"], argv["check"], seconds, str(self.state), Clock())

    def write(self, name: str, text: str = "as told\n") -> None:
        (self.folder / name).write_text(text)

    def written(self) -> int:
        path = self.folder / "written"
        return path.stat().st_size if path.exists() else 0

    def writes(self) -> bool:
        before = self.written()
        time.sleep(0.1)
        return self.written() > before

    def done(self) -> List[str]:
        path = self.folder / "done"
        return path.read_text().split() if path.exists() else []

    @property
    def paused(self) -> bool:
        return (self.folder / "flag").exists()

    @property
    def record(self) -> Path:
        return self.state / "pause/pause.json"

    def watched(self) -> bool:
        """Whether a watchdog is there."""
        held = self.state / "pause/watchdog"
        return held.exists() and subprocess.run(["flock", "--nonblock", str(held), "true"], check=False).returncode != 0


def wait_until(reached: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    made = Application(tmp_path)
    made.call("start")
    wait_until(lambda: made.written() > 0)
    yield made
    for name in ("fail-stop", "slow-stop"):
        if (made.folder / name).exists():
            (made.folder / name).unlink()
    made.call("stop")


@pytest.fixture
def still(tmp_path: Path) -> Application:
    """One that does not run; its hooks work."""
    return Application(tmp_path)


def test_hook_holds_writes_from_begin_to_end(app: Application) -> None:
    pause = app.hook()
    assert (pause.guarantee, pause.recover()) == ("paused", "")
    pause.begin()
    assert not app.writes()
    assert pause.lost() == ""
    record = json.loads(app.record.read_text())
    assert record["end"] == app.argv("resume")
    pause.end()
    assert app.writes()
    assert not app.record.exists()
    wait_until(lambda: not app.watched())
    assert app.done() == ["start", "pause", "paused", "paused", "resume", "paused"]
    assert (app.state / "pause/watchdog.log").read_text() == ""


def test_what_is_left_in_the_state_folder_is_for_its_owner_alone(app: Application) -> None:
    before = os.umask(0)
    try:
        pause = app.hook()
        pause.begin()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (app.state / "pause").iterdir()}
        pause.end()
    finally:
        os.umask(before)
    assert stat.S_IMODE((app.state / "pause").stat().st_mode) == 0o700
    assert modes == {"lock": 0o600, "pause.json": 0o600, "resume": 0o700, "watchdog": 0o600, "watchdog.log": 0o600}


def test_one_pause_after_the_other(app: Application) -> None:
    for _number in range(3):
        pause = app.hook()
        pause.begin()
        assert pause.lost() == ""
        pause.end()
    assert app.writes()


def test_stop_stops_and_starts(app: Application) -> None:
    pause = app.stop()
    assert pause.guarantee == "stopped"
    pause.begin()
    assert not app.writes()
    assert pause.lost() == ""
    pause.end()
    wait_until(app.writes)
    assert not app.record.exists()


def test_what_was_stopped_before_stays_stopped(app: Application) -> None:
    app.call("stop")
    pause = app.stop()
    pause.begin()
    assert not app.record.exists()
    assert pause.lost() == ""
    app.call("start")
    assert "was started meanwhile" in pause.lost()
    app.call("stop")
    pause.end()
    assert [word for word in app.done() if word != "status"] == ["start", "stop", "start", "stop"]


def test_without_a_check(app: Application) -> None:
    for pause in (app.hook(asks=False), app.stop(asks=False)):
        pause.begin()
        assert not app.writes()
        assert pause.lost() == ""
        pause.end()
        wait_until(app.writes)


def test_started_meanwhile(app: Application) -> None:
    pause = app.stop()
    pause.begin()
    app.call("start")
    assert "was started meanwhile" in pause.lost()
    pause.end()


def test_resumed_meanwhile(app: Application) -> None:
    pause = app.hook()
    pause.begin()
    app.call("resume")
    assert "does not hold its writes any more" in pause.lost()
    pause.end()


def test_paused_anew_meanwhile(app: Application) -> None:
    pause = app.hook()
    pause.begin()
    app.call("stop")
    app.call("start")
    wait_until(app.writes)
    app.call("pause")
    assert "by another pause" in pause.lost()
    pause.end()
    assert app.writes()


@pytest.mark.parametrize("asks", [True, False])
def test_expired(app: Application, asks: bool) -> None:
    """The watchdog ends what is late, though this process lives; that is known without a check too."""
    pause = app.hook(seconds=1, asks=asks)
    pause.begin()
    assert not app.writes()
    wait_until(lambda: not app.record.exists())
    assert app.writes()
    assert re.search(r"1\.\d s have gone by, and a pause lasts 1 s at most", pause.lost())
    pause.end()


def test_ended_by_somebody_else(app: Application) -> None:
    pause = app.hook()
    pause.begin()
    app.record.unlink()
    assert "its watchdog has ended it" in pause.lost()
    pause.end()
    assert app.writes()


def test_lost_where_the_answer_can_not_be_had(app: Application) -> None:
    pause = app.hook()
    pause.begin()
    (app.folder / "commands").rename(app.folder / "moved")
    (app.folder / "commands").write_text("exit 127")
    assert "it can't be known whether the pause has held" in pause.lost()
    (app.folder / "moved").rename(app.folder / "commands")
    pause.end()


@pytest.mark.parametrize("kind", ["hook", "stop"])
def test_begin_fails(app: Application, kind: str) -> None:
    name = {"hook": "pause", "stop": "stop"}[kind]
    app.write(f"fail-{name}", "password=geheim is wrong\n")
    pause = app.hook() if kind == "hook" else app.stop()
    with pytest.raises(OpskitError) as caught:
        pause.begin()
    assert f"no {name}" in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert app.writes()
    assert not app.record.exists()
    assert pause.recover() == ""


def test_begin_is_late(app: Application) -> None:
    app.write("slow-pause", "5")
    with pytest.raises(OpskitError, match="pausing writes failed: still running after 1 s and killed"):
        app.hook(seconds=1).begin()
    assert app.writes()
    assert not app.record.exists()


def test_begin_and_going_back_fail(app: Application) -> None:
    app.write("fail-stop")
    app.write("fail-start")
    with pytest.raises(OpskitError, match=r"stopping the application failed.*then ending it again failed"):
        app.stop().begin()
    assert app.record.exists()
    (app.folder / "fail-start").unlink()
    wait_until(lambda: not app.record.exists())  # the watchdog
    assert app.done()[-1] == "start"


def test_hook_of_an_application_that_does_not_run(still: Application) -> None:
    for name in ("fail-pause", "fail-resume"):
        still.write(name)
    with pytest.raises(OpskitError, match="pausing writes failed: exit code 5: no pause"):
        still.hook().begin()
    assert not still.record.exists()


def test_hook_that_nobody_can_ask_or_end(app: Application) -> None:
    """It may hold, so its record stays."""
    with pytest.raises(OpskitError, match=r"asking the application failed: exit code 127.*; then ending it again failed: exit code 1"):
        app.hook(end=["false"], check=["/no/such/program"]).begin()
    assert app.record.exists()
    app.record.unlink()
    app.call("resume")


def test_begin_without_effect(app: Application) -> None:
    with pytest.raises(OpskitError, match="does not hold its writes"):
        app.hook(begin=["true"]).begin()
    with pytest.raises(OpskitError, match="still runs after it was stopped"):
        app.stop(seconds=1, begin=["true"]).begin()
    assert app.writes()
    assert not app.record.exists()


def test_program_that_is_not_there(app: Application) -> None:
    with pytest.raises(OpskitError, match=r"/no/such/program 30: pausing writes failed: exit code 127"):
        app.hook(begin=["/no/such/program"]).begin()
    with pytest.raises(OpskitError, match="asking the application failed: exit code 127"):
        app.stop(check=["/no/such/program"]).begin()
    assert app.writes()


def test_end_fails(app: Application) -> None:
    pause = app.hook()
    pause.begin()
    app.write("fail-resume")
    with pytest.raises(OpskitError, match="resuming writes failed: exit code 5: no resume"):
        pause.end()
    assert not app.writes()
    assert app.record.exists()
    (app.folder / "fail-resume").unlink()
    wait_until(lambda: not app.record.exists())  # the watchdog goes on trying
    assert app.writes()


def test_end_without_effect(app: Application) -> None:
    pause = app.hook(end=["true"])
    pause.begin()
    with pytest.raises(OpskitError, match="still holds its writes after they were resumed"):
        pause.end()
    app.call("resume")


def test_end_does_not_start(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.2)
    pause = app.stop(end=["true"])
    pause.begin()
    with pytest.raises(OpskitError, match=r"does not run 0\.2 s after it was started again"):
        pause.end()


def test_no_watchdog_no_pause(app: Application, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program, script in (("flock", "exit 1"), ("setsid", "exit 4")):
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / program).chmod(0o755)
        with monkeypatch.context() as patched:
            patched.setattr(module, "WATCHDOG_S", 0.5)
            patched.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
            with pytest.raises(OpskitError, match=r"the watchdog .* could not be started, so nothing was paused"):
                app.hook().begin()
        assert not app.record.exists()
        (tmp_path / "bin" / program).unlink()
    assert app.done() == ["start"]
    app.hook().begin()


def test_watchdog_under_systemd(app: Application, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for systemd-run: what is looked at is how it is called, and that what it starts is all that is needed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemd-run").write_text(
        f'#!/bin/sh\necho "$@" >\'{tmp_path}/called\'\nwhile [ "$1" != -- ]; do shift; done\nshift\n'
        'exec setsid --fork env -i "$@" </dev/null >/dev/null 2>&1\n'
    )
    (tmp_path / "bin/systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(module, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    pause = app.hook(seconds=1)
    pause.begin()
    called = (tmp_path / "called").read_text()
    assert re.match(r"--collect --quiet --unit=opskit-pause-[0-9a-f]{16} --property=KillMode=process -- /bin/sh /", called)
    wait_until(lambda: not app.record.exists())
    assert app.writes()


def test_full_or_forbidden_state_folder(app: Application) -> None:
    app.state.write_text("in the way")
    with pytest.raises(OpskitError, match=r"a pause could not be prepared|a folder is needed"):
        app.hook().begin()
    assert app.writes()


def test_two_at_once(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GRACE_S", 0.1)
    first = app.hook()
    first.begin()
    with pytest.raises(OpskitError, match="another run is at work here"):
        app.hook().begin()
    assert first.lost() == ""
    first.end()
    assert app.writes()


# -- runs that die ------------------------------------------------------------------------------------------------


def start_run(work: Callable[[], None]) -> int:
    """Start a child in a group of its own, as a module is."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        work()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)  # not exit: nothing of the tests is to be closed
    return 0


def begin_and_wait(pause: CommandPause, begun: Path) -> Callable[[], None]:
    def work() -> None:
        pause.begin()
        begun.touch()
        time.sleep(60)

    return work


@pytest.mark.parametrize("kind", ["hook", "stop"])
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_killed_in_the_pause(app: Application, tmp_path: Path, kind: str, whole_group: bool) -> None:
    child = start_run(begin_and_wait(app.hook() if kind == "hook" else app.stop(), tmp_path / "begun"))
    wait_until((tmp_path / "begun").exists)
    assert not app.writes()
    (os.killpg if whole_group else os.kill)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(app.writes, 3)
    wait_until(lambda: not app.record.exists())
    wait_until(lambda: not app.watched())
    assert (app.hook() if kind == "hook" else app.stop()).recover() == ""


def test_stands_still_in_the_pause(app: Application, tmp_path: Path) -> None:
    child = start_run(begin_and_wait(app.hook(seconds=1), tmp_path / "begun"))
    wait_until((tmp_path / "begun").exists)
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: not app.record.exists())
    assert app.writes()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_application_that_the_watchdog_started_holds_no_lock(app: Application, tmp_path: Path) -> None:
    child = start_run(begin_and_wait(app.stop(), tmp_path / "begun"))
    wait_until((tmp_path / "begun").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not app.record.exists())
    pause = app.stop()
    pause.begin()
    pause.end()
    wait_until(app.writes)


def test_killed_while_what_pauses_is_still_at_work(still: Application) -> None:
    """It is not the child but a grandchild, as behind runuser, so it lives on; nothing is resumed before it is done."""
    still.write("slow-pause", "1")
    commands = " ".join(f"'{word}'" if "'" not in word else f'"{word}"' for word in still.argv("pause"))
    child = start_run(lambda: still.hook(begin=["sh", "-c", f'{commands} "$0"; exit']).begin())
    wait_until(still.watched)
    time.sleep(0.3)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: "pause" in still.done())
    wait_until(lambda: not still.record.exists())
    assert not still.paused
    assert still.done() == ["pause", "resume"]


def lines_of(pause: CommandPause) -> Set[int]:
    """Return the lines of the module that a whole pause goes through."""
    seen: Set[int] = set()

    def trace(frame: Any, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != inspect.getsourcefile(module):
            return None
        seen.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        whole(pause)
    finally:
        sys.settrace(before)
    return seen


def whole(pause: CommandPause) -> None:
    pause.recover()
    pause.begin()
    pause.lost()
    pause.end()


def killed_at(pause: CommandPause, line: int, whole_group: bool) -> Callable[[], None]:
    def trace(frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != inspect.getsourcefile(module):
            return None
        if event == "line" and frame.f_lineno == line:
            os.killpg(0, signal.SIGKILL) if whole_group else os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def work() -> None:
        sys.settrace(trace)
        whole(pause)

    return work


@pytest.mark.parametrize("kind", ["hook", "stop"])
def test_killed_before_every_line(tmp_path: Path, kind: str) -> None:
    def make(name: str) -> Tuple[Application, CommandPause]:
        (tmp_path / name).mkdir()
        one = Application(tmp_path / name)
        if kind == "stop":
            one.write("application.py", "import time; time.sleep(60)")
            one.call("start")
        return one, one.hook(seconds=20) if kind == "hook" else one.stop(seconds=20)

    def goes_on(one: Application) -> bool:
        return not one.paused if kind == "hook" else one.call("status") == 0

    first, pause = make("whole")
    lines = sorted(lines_of(pause))
    assert len(lines) > 60
    applications = [first]
    # The two kinds share most lines.
    for start in range(0 if kind == "hook" else 1, len(lines), 24):
        children = []
        for line in lines[start : start + 24 : 2]:
            one, pause = make(str(line))
            children.append((line, one, start_run(killed_at(pause, line, line % 4 < 2))))
        for _line, _one, child in children:
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        for line, one, _child in children:
            wait_until(lambda one=one: not one.watched())  # type: ignore[misc]
            left = (one.hook() if kind == "hook" else one.stop()).recover()
            # Only before the watchdog is there something can be left, and then nothing was paused yet.
            assert not left or ("pause" not in one.done() and "stop" not in one.done()), (line, left)
            assert goes_on(one), line
            assert not one.record.exists(), line
            applications.append(one)
    for one in applications:
        one.call("stop")


# -- what is found later ------------------------------------------------------------------------------------------


def leave(app: Application, kind: str = "hook", begun: str = "2031-02-03T04:05:06Z", **changes: Any) -> None:
    """Leave what a run leaves that died together with its watchdog, as by a power cut."""
    (app.state / "pause").mkdir(parents=True, mode=0o700)
    end = app.argv("resume" if kind == "hook" else "start")
    record = {"version": 1, "id": "0123456789abcdef", "kind": kind, "end": end, "begun": begun, "seconds": 30, **changes}
    app.record.write_text(json.dumps(record))


def test_recover_resumes(app: Application) -> None:
    app.call("pause")
    leave(app)
    said = app.hook().recover()
    assert said == "a run that paused writes at 2031-02-03T04:05:06Z died before it resumed them; writes were resumed now"
    assert app.writes()
    assert app.hook().recover() == ""


def test_recover_starts(app: Application) -> None:
    app.call("stop")
    leave(app, "stop")
    # By the record, whatever this run is told.
    said = app.hook().recover()
    assert said == "a run that stopped the application at 2031-02-03T04:05:06Z died before it started it again; it was started now"
    wait_until(app.writes)


def test_recover_fails(app: Application) -> None:
    app.write("fail-start")
    app.write("fail-resume")
    leave(app, "stop")
    assert re.search(r"to start it failed now .*exit code 5.* Start the application by hand: sh ", app.stop().recover())
    with pytest.raises(OpskitError, match="the pause of an earlier run has not been ended yet"):
        app.stop().begin()
    app.record.unlink()
    app.record.parent.rmdir() if not list(app.record.parent.iterdir()) else None
    (app.folder / "fail-start").unlink()


def test_recover_where_a_hook_fails(still: Application) -> None:
    still.write("fail-resume")
    leave(still)
    assert "It expires by itself" in still.hook().recover()
    assert still.record.exists()
    still.record.write_text(still.record.read_text().replace("2031", "2021"))
    assert "but that pause has expired by itself" in still.hook().recover()
    assert not still.record.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "none", "end": ["true"], "begun": "2031-02-03T04:05:06Z", "seconds": 1}'])
def test_recover_with_a_damaged_record(app: Application, content: str) -> None:
    app.call("pause")
    leave(app)
    app.record.write_text(content)
    assert "its record can't be read" in app.hook().recover()
    assert app.writes()
    assert not app.record.exists()


def test_recover_leaves_a_pause_alone_that_is_held(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0)
    monkeypatch.setattr(lock, "GRACE_S", 0.1)
    pause = app.hook()
    pause.begin()
    assert "the pause of another run is still held" in app.hook().recover()
    assert pause.lost() == ""
    pause.end()


@pytest.mark.parametrize("kind", ["hook", "stop"])
def test_script_ends_what_it_finds_after_a_reboot(app: Application, kind: str) -> None:
    """As the unit at boot runs it: no lock is held, no Python is needed."""
    pause = app.hook() if kind == "hook" else app.stop()
    pause.begin()
    script, record = app.state / "pause/resume", app.record.read_text()
    pause.end()
    wait_until(lambda: not app.watched())
    app.call({"hook": "pause", "stop": "stop"}[kind])
    app.record.write_text(record)
    done = subprocess.run(["/bin/sh", str(script)], env={}, timeout=20, stdout=subprocess.PIPE, check=True)
    assert b"ended, because the run that began it is dead" in done.stdout
    assert not app.record.exists()
    wait_until(app.writes)
    # Once more, and nothing is to be done; nor for the record of another pause.
    app.record.write_text(record.replace(json.loads(record)["id"], "0123456789abcdef"))
    before = app.done()
    subprocess.run(["/bin/sh", str(script)], env={}, timeout=20, check=True)
    assert app.done() == before
    app.record.unlink()


# -- what the module is told --------------------------------------------------------------------------------------


def told(**changes: Any) -> Dict[str, Any]:
    pause = {"kind": "hook", "begin": ["/bin/pause"], "end": ["/bin/resume"], "check": [], "seconds": 60}
    pause.update({name: value for name, value in changes.items() if name in pause})
    others = {name: value for name, value in changes.items() if name not in pause}
    return {"pause": pause, "require_pause": False, "state_dir": "/var/lib/opskit/gateway", **others}


def test_built_of_the_options() -> None:
    hook, stop = build_pause(told()), build_pause(told(kind="stop", check=["/bin/status"]))
    assert (hook and hook.guarantee, stop and stop.guarantee) == ("paused", "stopped")
    assert build_pause({"pause": None, "require_pause": False, "state_dir": None}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": []}, "pause: begin is empty. Name the program that pauses writes"),
        ({"begin": [""]}, "pause: begin is empty."),
        ({"end": [], "kind": "stop"}, "pause: end is empty. Name the program that starts the application"),
        ({"check": ["", "x"]}, "pause: check begins with an empty word."),
        ({"seconds": 0}, "pause.seconds is 0, but has to be from 1 to 3600"),
        ({"seconds": 3601}, "pause.seconds is 3601, but"),
        ({"state_dir": None}, "state_dir: a pause needs the folder that its record is kept in."),
        ({"state_dir": "var/opskit"}, "var/opskit: this path is not absolute."),
        ({"pause": None, "require_pause": True}, "require_pause: a pause is required, but none is described."),
    ],
)
def test_mistakes_in_the_options(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(OpskitError) as caught:
        build_pause(told(**changes))
    assert str(caught.value).startswith(message)
