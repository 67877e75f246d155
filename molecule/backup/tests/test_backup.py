# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup has left on the hosts, looked at with the system's own tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

Host = Any  # testinfra carries no types
STORE = "/var/backups/opskit/notes"


@pytest.fixture
def the_set(host: Host) -> str:
    """The folder of the one set; two converges and two rehearsals have made no second."""
    with host.sudo():
        sets = host.file(f"{STORE}/sets").listdir()
    assert len(sets) == 1
    return f"{STORE}/sets/{sets[0]}"


def test_store_is_for_root_alone(host: Host) -> None:
    with host.sudo():
        store = host.file(STORE)
        assert (store.is_directory, store.user, store.group, oct(store.mode)) == (True, "root", "root", "0o700")
        assert host.check_output(f"find {STORE} -type f -perm /077 ! -name restore.sh ! -name README.txt") == ""
        assert host.file(f"{STORE}/tmp").listdir() == []


def test_manifest_names_the_application_and_its_database(host: Host, the_set: str) -> None:
    with host.sudo():
        manifest = json.loads(host.file(f"{the_set}/manifest.json").content_string)
    assert manifest["application"] == "notes"
    assert [(database["name"], database["engine"]) for database in manifest["databases"]] == [("notes", "sqlite")]
    assert manifest["guarantee"] == "stopped"
    assert 0 < manifest["pause_s"] < 30


def test_what_was_stopped_runs_again_and_would_after_a_power_cut(host: Host) -> None:
    name = f"opskit-pause-{host.backend.get_hostname()}.service"
    with host.sudo():
        assert host.service("notes.service").is_running
        assert host.service(name).is_enabled
        assert host.check_output("find /var/lib/opskit -name pause.json") == ""


def test_objects_are_whole_and_compressed_with_zstd(host: Host, the_set: str) -> None:
    with host.sudo():
        assert host.package("zstd").is_installed
        assert host.run(f"cd {the_set} && sha256sum --quiet --check SHA256SUMS").stdout == ""
        names = host.check_output(f"find {STORE}/objects -type f -printf '%f\\n'").split()
    assert names
    assert {name.split(".", 1)[1] for name in names} <= {"tar.zst", "dump.zst"}


def test_restore_by_hand_gives_back_files_and_rows(host: Host, the_set: str) -> None:
    rows = "SELECT count(*), sum(text) FROM note"
    with host.sudo():
        folder = host.check_output("mktemp -d")
        done = host.run(f"sh {the_set}/restore.sh {folder}")
        assert done.rc == 0, done.stdout + done.stderr
        for name in ("config", "projects"):
            assert host.run(f"diff -r /opt/notes/{name} {folder}/{name}").stdout == ""
        assert host.run(f"cmp /opt/notes/.env {folder}/environment/.env").rc == 0
        counts = {
            host.check_output(f"python3 -c \"import sqlite3; print(sqlite3.connect('{path}').execute('{rows}').fetchone())\"")
            for path in ("/opt/notes/data/notes.db", f"{folder}/data/notes.db")
        }
        host.check_output(f"rm -r {folder}")
    assert counts == {"(1000, 499500)"}


def test_application_runs_and_journal_has_both_runs(host: Host) -> None:
    with host.sudo():
        assert host.service("notes").is_running
        journal = host.file(f"/var/lib/opskit/{host.backend.get_hostname()}/journal.jsonl").content_string.splitlines()
    assert [(entry["runbook"], entry["outcome"]) for entry in map(json.loads, journal)] == [("backup", "ok"), ("backup", "ok")]
