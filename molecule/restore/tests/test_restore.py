# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore has given back to the hosts, looked at with the system's own tools."""

from __future__ import annotations

import json
from typing import Any

Host = Any  # testinfra carries no types


def sql(host: Host, query: str, database: str = "wiki") -> str:
    with host.sudo("postgres"):
        return str(host.check_output(f'cd / && psql -XAt -d {database} -c "{query}"'))


def test_files_are_back_with_owner_and_mode(host: Host) -> None:
    with host.sudo():
        for name, content in ((".env", "not-a-real-secret"), ("config/wiki.ini", "[wiki]"), ("projects/first/page", "a line of a page")):
            file = host.file(f"/opt/wiki/{name}")
            assert (file.user, file.group, oct(file.mode)) == ("wiki", "wiki", "0o640")
            assert content in file.content_string


def test_rows_properties_and_role_are_back(host: Host) -> None:
    assert sql(host, "SELECT count(*), sum(text::int), max(id) FROM page") == "1000|499500|1000"
    assert sql(host, "SELECT nextval('page_id_seq')") == "1001"
    assert sql(host, "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'wiki'") == "of the wiki"
    assert sql(host, "SHOW work_mem") == "5MB"
    url = "postgresql://wiki:not-a-real-secret@127.0.0.1:5432/wiki"
    assert host.check_output(f"psql -XAt {url} -c 'SELECT count(*) FROM page'") == "1000"


def test_nothing_is_left_half_done(host: Host) -> None:
    assert sql(host, "SELECT count(*) FROM pg_database WHERE datname LIKE 'wiki_%'", "postgres") == "0"
    with host.sudo():
        state = f"/var/lib/opskit/{host.backend.get_hostname()}"
        assert json.loads(host.file(f"{state}/restore.json").content_string)["phase"] == "committed"
        assert not host.file(f"{state}/lease.json").exists
        assert host.file("/var/backups/opskit/wiki/tmp").listdir() == []


def test_application_runs_and_journal_has_all_runs(host: Host) -> None:
    assert host.service("wiki").is_running
    assert (
        host.check_output("python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/healthz').read())\"")
        == "b'ok\\n'"
    )
    with host.sudo():
        journal = host.file(f"/var/lib/opskit/{host.backend.get_hostname()}/journal.jsonl").content_string.splitlines()
    found = [(entry["runbook"], entry["outcome"], entry["details"]["changed"]) for entry in map(json.loads, journal)]
    assert found == [("backup", "ok", True), ("restore", "ok", True), ("restore", "ok", False)]
