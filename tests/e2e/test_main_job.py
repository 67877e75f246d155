# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: back up under traffic, destroy, restore, everything is back. And its secrets are nowhere else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Application, Run, State, World, processes, wait_until


@dataclass
class Job:
    """What was there before and after the backup and after the restore, and what the runbooks said."""

    world: World
    secrets: list[bytes]
    ledger: Path
    begun: str
    backup: Run
    restore: Run
    files: tuple[State, State, State]
    rows: tuple[State, State, State]
    logs: tuple[bytes, bytes]
    ready: tuple[bool, bool]
    command_lines: set[bytes]


def make_strange_files(application: Application) -> None:
    """Everything that a file can be."""
    strange = os.path.join(os.fsencode(application.root), b"projects/strange")
    os.makedirs(strange + b"/empty folder")
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"-dash", b"quote'\"$(x)"):
        with open(os.path.join(strange, name), "wb") as stream:
            stream.write(name)
    os.link(strange + b"/-dash", strange + b"/second name")
    os.symlink(b"-dash", strange + b"/link")
    os.symlink(b"nowhere", strange + b"/dangling")
    with open(strange + b"/sparse", "wb") as stream:
        stream.seek(8 << 20)
        stream.write(b"end")
    os.setxattr(strange + b"/-dash", "user.note", b"kept\0too")
    os.chmod(strange + b"/new\nline", 0o400)
    os.chmod(strange + b"/empty folder", 0o2750)
    os.utime(strange + b"/link", ns=(0, 1_234_567_891), follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(strange + b"/quote'\"$(x)", 4321, 1234)
    subprocess.run(["setfacl", "-m", "u:65534:r", strange + b"/-dash"], check=True)


@contextlib.contextmanager
def command_lines_seen(seen: set[bytes]) -> Iterator[None]:
    """Collect the command line of every process that runs meanwhile."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.03):
            seen.update(command for _pid, _parent, command in processes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def job(make_world: Make) -> Job:
    world = make_world("one", rows=1500, projects=10)
    application = world.application
    make_strange_files(application)
    lines = [line.partition(b"=") for line in (application.root / ".env").read_bytes().splitlines()]
    secrets = [value for name, _equals, value in lines if name in (b"APP_SECRET_KEY", b"ADMIN_TOKEN", b"FAKE_API_KEY")]
    assert len(secrets) == 3
    ledger = world.folder / "ledger.jsonl"
    argv = ["-m", "gateway", "traffic", "--root", str(application.root), "--ledger", str(ledger), "--seconds", "90", "--rate", "30"]
    traffic = subprocess.Popen([sys.executable, *argv], env=world.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seen: set[bytes] = set()
    with command_lines_seen(seen):
        try:
            wait_until(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 50, "50 acknowledged writes", 30)
            files, rows = application.files(), application.rows()
            time.sleep(1)  # the ledger's times are compared by the second
            begun = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            backup = world.play("backup", "-vv", "--diff", pipelining=False)
        finally:
            traffic.terminate()
            traffic.wait()
        files_after, rows_after = application.files(), application.rows()
        logs = (application.root / "data/logs/access.log").read_bytes()
        application.destroy()
        ready = application.ready()
        restore = world.play("restore", "-vv", "--diff", "-e", "opskit_confirm=one", pipelining=False)
    return Job(
        world,
        secrets,
        ledger,
        begun,
        backup,
        restore,
        (files, files_after, application.files()),
        (rows, rows_after, application.rows()),
        (logs, (application.root / "data/logs/access.log").read_bytes()),
        (ready, application.ready()),
        seen,
    )


def compare(before: State, after: State, restored: State) -> int:
    """All is as it was before or after the backup, what did not change meanwhile exactly that; returns how much changed."""
    assert [key for key in before if key in after and key not in restored] == []
    assert {key: value for key, value in restored.items() if value not in (before.get(key), after.get(key))} == {}
    return sum(1 for key in after if before.get(key) != after[key])


def test_every_file_is_back(job: Job) -> None:
    folders = {key for state in job.files for key in state if job.files[1].get(key, (0,))[0] & 0o170000 == 0o040000}
    # A folder that files are written into has a time of any moment during the backup.
    files = [{k: (*v[:3], 0, *v[4:]) if k in folders else v for k, v in state.items()} for state in job.files]
    compare(*files)
    strange = {key: value for key, value in job.files[0].items() if key.startswith(b"projects/strange")}
    assert len(strange) == 10
    assert {key: job.files[2].get(key) for key in strange} == strange  # folder times, too


def test_every_row_is_back(job: Job) -> None:
    assert compare(*job.rows) > 20
    assert job.world.application.cli("ledger-check", "--ledger", str(job.ledger), "--until", job.begun)["checked"] > 20


def test_the_application_was_down_and_is_ready(job: Job) -> None:
    assert job.ready == (False, True)


def test_live_logs_went_on(job: Job) -> None:
    before, after = job.logs
    assert after.startswith(before)
    assert len(after) > len(before)


def test_recorded_and_published(job: Job) -> None:
    application = job.world.application
    made, back = application.journal()
    assert (application.state / "journal.jsonl").stat().st_mode & 0o7777 == 0o600
    assert (made["runbook"], made["outcome"], made["host"], made["application"]) == ("backup", "ok", "one", "gateway")
    assert (back["runbook"], back["outcome"]) == ("restore", "ok")
    assert [made["details"]["set"]["id"]] == application.sets() == [back["details"]["set"]]
    published = job.backup.stats["opskit_backup"]["one"]
    assert published["ok"] is published["changed"] is True
    assert published["check_mode"] is False
    assert published["set"] == made["details"]["set"]
    assert published["set"]["verified"] == "content"
    assert job.restore.stats["opskit_restore"]["one"]["set"] == back["details"]["set"]


def test_secrets_are_nowhere_else(job: Job) -> None:
    application = job.world.application
    places = {"backup's output": job.backup.output.encode(), "restore's output": job.restore.output.encode()}
    places["argv"] = b"\n".join(job.command_lines)
    assert b"AnsiballZ_backup_restore" in places["argv"]  # it was really looked at
    for folder in (application.store, application.state, job.world.temporary, job.world.folder / "ansible"):
        for path in folder.rglob("*"):
            if path.is_file() and "objects" not in path.relative_to(folder).parts:
                places[str(path)] = path.read_bytes()
                if path.suffix == ".zst":
                    places[str(path)] = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    if os.environ.get("ANSIBLE_LOG_PATH"):
        places["log"] = Path(os.environ["ANSIBLE_LOG_PATH"]).read_bytes()
    assert any(name.endswith("files.jsonl.zst") and b"gateway.toml" in content for name, content in places.items())
    assert [name for name, content in places.items() if any(secret in content for secret in job.secrets)] == []


def test_nothing_is_left_in_temporary_folders(job: Job) -> None:
    assert [str(path) for path in job.world.temporary.rglob("*") if not path.is_dir()] == []


def test_commands_of_the_readme(job: Job) -> None:
    """As a person would type them; the store's path has a space in it."""
    application = job.world.application
    lines = [line.strip() for line in (application.store / "README.txt").read_text().splitlines()]
    listing, *by_hand = (next(line for line in lines if line.startswith(word)) for word in ("ls ", "cd ", "sha256sum "))
    (only,) = application.sets()
    script = " && ".join(line.partition("   ")[0].replace("<set>", only) for line in [listing, *by_hand])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == only
    assert "manifest.json: OK" in done.stdout


def test_nobody_else_may_read_store_and_state(job: Job) -> None:
    application = job.world.application
    paths = [path for folder in (application.store, application.state) for path in (folder, *folder.rglob("*"))]
    assert len(paths) > 20
    assert [str(path) for path in paths if not path.is_symlink() and path.stat().st_mode & 0o007] == []


def test_second_restore_changes_nothing_while_stopped(job: Job) -> None:
    """Last, because it stops the application."""
    application = job.world.application
    application.stop()
    options = {"state": "restored", "state_dir": str(application.state)}
    first = job.world.module("backup_restore", "one", **options)
    assert first["changed"] is True, first
    before = application.files(), (application.root / "data/gateway.db").read_bytes(), (application.state / "restore.json").read_bytes()
    second = job.world.module("backup_restore", "one", **options)
    assert (second["changed"], second["plan"]) == (False, []), second
    assert (
        application.files(),
        (application.root / "data/gateway.db").read_bytes(),
        (application.state / "restore.json").read_bytes(),
    ) == before
