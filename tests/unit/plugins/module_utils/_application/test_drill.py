# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drills of a small application with a systemctl that starts plain processes: what is restored, compared, recorded and removed.

Cut off it is not here; that is seen in the lab.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import drill as module
from ansible_collections.opskit.runbooks.plugins.module_utils._application import isolation, wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._application.drill import Damaged, Drill
from ansible_collections.opskit.runbooks.plugins.module_utils._application.isolation import Room
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import cluster as throw_away
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import App, add_rows, flip_bit, look_at
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

HERE = Path(__file__).resolve().parent
ME = pwd.getpwuid(os.geteuid()).pw_name

# Says what it has: its settings, a file, rows of SQLite, and whether PostgreSQL lets it in.
SERVE = """
import http.server, json, os, sqlite3, sys
root, port = sys.argv[1:]
paths = dict(pair.split("=", 1) for pair in sys.argv[1].split(","))
def settings():
    with open(paths["env"]) as stream:
        return dict(line.strip().split("=", 1) for line in stream if "=" in line)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(paths["config"] + "/gateway.toml") as stream:
            seen = {"config": stream.read().strip(), "token": settings()["TOKEN"], "mode": os.environ.get("MODE", "")}
        if "DATABASE_URL" in settings():
            import psycopg2
            connection = psycopg2.connect(settings()["DATABASE_URL"])
            cursor = connection.cursor()
            cursor.execute("SELECT count(*) FROM note")
            seen["notes"] = cursor.fetchone()[0]
            connection.close()
        else:
            seen["rows"] = sqlite3.connect(paths["data"] + "/app.db").execute("SELECT count(*) FROM ledger").fetchone()[0]
        seen["folders"] = [os.path.isdir(paths["data"] + "/" + name) for name in ("run", "logs")]
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""

PROGRAMS = {
    "systemctl": f'exec {sys.executable} {HERE}/systemctl.py "$@"',
    # --unit=<name>
    "journalctl": 'cat "$UNITS/../${1#--unit=}.log" 2>/dev/null || true',
    "nsenter": 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Host:
    """An application with a set, a systemctl for it, and the drill as a call."""

    def __init__(self, app: App, top: Path) -> None:
        self.app, self.top, self.port = app, top, free_port()
        # The server's user passes through it.
        self.folder = str(top / "drill")
        script = top / "serve.py"
        script.write_text(SERVE)
        paths = {"env": app.paths["environment"], "config": app.paths["config"], "data": app.paths["data"]}
        joined = ",".join(f"{name}={path}" for name, path in paths.items())
        self.live(f"ExecStart={sys.executable} {script} {joined} {self.port}")

    def live(self, *lines: str) -> None:
        """What the application's unit says."""
        text = "\n".join(["[Service]", "Type=simple", f"EnvironmentFile={self.app.paths['environment']}", *lines])
        (self.top / "live.service").write_text(text)
        (self.top / "live.properties").write_text(
            f"User={ME}\nGroup=\nRuntimeDirectory=live\nStateDirectory=\nCacheDirectory=\nLogsDirectory=\n"
        )

    def check(self, **wanted: Any) -> Dict[str, Any]:
        rules = [{"path": f"$.{name}", "value": value} for name, value in wanted.items()]
        return {"id": "seen", "type": "http", "url": f"http://127.0.0.1:{self.port}/", "json": rules}

    def operation(self, **options: Any) -> Drill:
        params: Dict[str, Any] = {
            **self.app.params,
            "state_dir": self.app.state_dir,
            "drill_dir": self.folder,
            "set": "latest",
            "units": ["live"],
            "checks": [self.check(rows=200, config="level = 1", folders=[True, True])],
            "environment": {},
            "owner": "",
            "schema_command": [],
            "migrate_command": [],
            "start_timeout": 10,
            "seconds": 600,
            **options,
        }
        unset = dict.fromkeys(wiring.database_spec()["options"])
        params["databases"] = [{**unset, **item} for item in params["databases"]]
        return wiring.backup_drill(params, self.app.clock)

    def drill(self, check_mode: bool = False, **options: Any) -> Dict[str, Any]:
        operation = self.operation(**options)
        result = carry_out(operation, check_mode, self.app.clock)
        result["failure"] = operation.failure()
        return result

    def proof(self) -> Dict[str, Any]:
        (set_id,) = os.listdir(os.path.join(self.app.store, "proofs"))
        folder = os.path.join(self.app.store, "proofs", set_id)
        with open(os.path.join(folder, max(name for name in os.listdir(folder) if name.endswith(".json")))) as stream:
            return dict(json.load(stream))

    def left(self) -> List[str]:
        """Units, their processes, and the folder."""
        units = [path.name for path in (self.top / "units").iterdir()]
        pids = [path.name for path in self.top.glob("opskit-drill-*.pid")]
        return [*units, *pids, *([self.folder] if os.path.lexists(self.folder) else [])]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        # As root, the database's user has to get through.
        os.chmod(folder, os.stat(folder).st_mode | stat.S_IXOTH)
    programs, units = tmp_path / "bin", tmp_path / "units"
    programs.mkdir()
    units.mkdir()
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("UNITS", str(units))
    monkeypatch.setattr(isolation, "UNITS", str(units))
    # Nothing here is cut off, and nobody has to be root for that.
    monkeypatch.setattr(isolation, "breaches", lambda *_words: "")
    monkeypatch.setattr(Room, "require", staticmethod(lambda: None))
    monkeypatch.setattr(Room, "in_network", lambda _self, work: work())
    app = App(str(tmp_path)).build()
    app.backup()
    made = Host(app, tmp_path)
    yield made
    made.operation().room.close()


def test_a_set_is_drilled_and_nothing_live_is_touched(host: Host) -> None:
    host.app.write("config/gateway.toml", "level = 2\n", 0o640)
    before = look_at(host.app.root)
    result = host.drill()
    assert result["failure"] == ""
    assert (result["changed"], result["action"]) == (True, "drilled")
    assert [check["check"] for check in result["checks"]] == ["application seen", "nothing of the drill is left", "proof recorded"]
    assert 0 < result["recovery_time_s"] <= result["duration_s"]
    proof = host.proof()
    assert (proof["level"], proof["ok"], proof["recovery_time_s"]) == ("drill", True, result["recovery_time_s"])
    assert proof["recovery_point"] == result["recovery_point"] == result["set"]["time"]
    assert set(result["phases"]) == {"isolate_s", "stage_s", "start_s"}
    assert host.left() == []
    assert look_at(host.app.root) == before
    # It counts as one whose content was read, and reading that again takes nothing away.
    assert host.app.info()["newest_verified"] == result["set"]["id"]
    assert host.app.verify()["failure"] == ""
    assert host.proof()["level"] == "drill"


def test_a_rehearsal_makes_nothing(host: Host) -> None:
    rehearsed = host.drill(check_mode=True)
    assert host.left() == []
    assert host.proof()["level"] == "content"
    assert not os.path.exists(os.path.join(host.app.state_dir, "drill.lock"))
    done = host.drill()
    assert [(step["step"], step["target"]) for step in rehearsed["plan"]] == [(step["step"], step["target"]) for step in done["plan"]]


def test_settings_are_put_over_those_of_the_set(host: Host) -> None:
    before = look_at(host.app.root)
    result = host.drill(environment={"TOKEN": "other", "MODE": "drill"}, checks=[host.check(token="other", mode="drill")])
    assert result["failure"] == ""
    assert look_at(host.app.root) == before


@pytest.mark.parametrize("kind", ["tar", "sqlite"])
def test_a_flipped_bit_of_an_object_is_named_and_the_set_counts_no_more(host: Host, kind: str) -> None:
    objects = [path for path in host.app.objects() if (".tar." in path) == (kind == "tar")]
    flip_bit(objects[0])
    result = host.drill()
    name = os.path.basename(objects[0])
    assert name in result["failure"]
    assert [failure["object"] for failure in result["failures"]] == [name]
    assert result["recovery_time_s"] is None
    assert (host.proof()["ok"], host.proof()["level"]) == (False, "content")
    assert host.left() == []
    with pytest.raises(OpskitError, match="there is no verified set"):
        host.drill()
    (kept,) = host.app.prune()["kept"]
    assert kept["reasons"] == ["the newest set is not verified, so nothing is deleted"]
    assert [failure["object"] for failure in host.app.verify()["sets"][0]["failures"]] == [name]


def test_a_flipped_bit_of_the_sets_own_files(host: Host) -> None:
    (set_id,) = os.listdir(os.path.join(host.app.store, "sets"))
    flip_bit(host.app.set_file(set_id, "restore.sh"))
    result = host.drill()
    assert "restore.sh is not what was written" in result["failure"]
    assert host.app.info()["newest_verified"] == ""


def test_what_only_a_drill_sees_only_a_drill_takes_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_self: Any, *_words: Any) -> None:
        raise Damaged("drill", [{"object": "", "reason": "rows"}])

    with monkeypatch.context() as patch:
        patch.setattr(Drill, "_restore", damaged)
        assert "first: rows" in host.drill()["failure"]
    (set_id,) = os.listdir(os.path.join(host.app.store, "sets"))
    verified = host.app.verify()
    assert (verified["failure"], verified["changed"]) == ("", False)
    assert "counts again only when it passes one" in verified["warnings_"][0]
    assert host.app.info()["newest_verified"] == ""
    assert host.drill(set=set_id)["failure"] == ""
    assert host.app.info()["newest_verified"] == set_id


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["ExecStart=/bin/sh -c 'echo no such config >&2; exit 3'"], "it does not run: .*exit code 3: no such config"),
        # As systemd ends it where it can't make namespaces.
        (["ExecStart=/bin/sh -c 'exit 226'"], "this host gives no mount and network namespaces of their own"),
        (["ExecStart=/bin/sleep 60"], "did not become ready on the copy within 1 s"),
        (["ExecStart=/bin/sh -c 'sleep 1; echo it ends >&2; exit 1'"], "it does not run"),
    ],
)
def test_an_application_that_does_not_work_says_nothing_about_the_set(host: Host, lines: List[str], says: str) -> None:
    host.live(*lines)
    with pytest.raises(OpskitError, match=says):
        host.drill(start_timeout=1)
    assert host.proof()["level"] == "content"
    assert host.left() == []


def test_other_checks_are_asked_of_the_copy(host: Host) -> None:
    checks = [
        host.check(rows=200),
        {"id": "command", "type": "command", "argv": ["true"], "depends_on": ["seen", "other"]},
        {"id": "other", "type": "systemd", "unit": "postgresql.service"},
    ]
    operation = host.operation(checks=checks)
    result = carry_out(operation, False, host.app.clock)
    assert [check["check"] for check in result["checks"]][:2] == ["application seen", "application command"]
    assert result["warnings_"] == ["check other is left out: postgresql.service does not run in a drill"]


def folder_is(make: Callable[[Host], str]) -> Callable[[Host], Dict[str, Any]]:
    return lambda host: {"drill_dir": make(host)}


def foreign(host: Host) -> str:
    (host.top / "foreign").mkdir()
    (host.top / "foreign" / "letter").write_text("dear")
    return str(host.top / "foreign")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (folder_is(foreign), "this is no folder of a drill"),
        (folder_is(lambda host: host.app.at("data/drill")), "lie in each other"),
        (folder_is(lambda host: host.app.root), "this is no folder of a drill"),
        (folder_is(lambda host: host.app.store + "/drill"), "the store .* lie in each other"),
        (lambda _host: {"drill_dir": "drill"}, "not absolute"),
        (lambda _host: {"units": []}, "nothing says which systemd units serve"),
        (lambda _host: {"units": ["none"]}, "this host does not have the unit .*No files found"),
        (lambda _host: {"units": ["live.socket"]}, "this is no service"),
        (lambda _host: {"checks": []}, "nothing says when the application works"),
        (lambda _host: {"checks": [{"id": "a", "type": "http"}]}, "url"),
        (lambda _host: {"checks": [{"id": "a b", "type": "tcp", "port": 1}]}, "an id has letters"),
        (lambda _host: {"environment": {"A B": "1"}}, "A B is no variable"),
        (lambda _host: {"environment": {"A": "1\n2"}}, "more than one line"),
        (lambda _host: {"set": "20200101T000000Z-0000"}, "there is no set"),
        (lambda _host: {"start_timeout": 0}, "start_timeout"),
        (lambda host: {"paths": {"data": host.app.at("data")}}, "holds config, for which the description names no place"),
    ],
)
def test_what_can_not_be_drilled_is_refused(host: Host, options: Callable[[Host], Dict[str, Any]], says: str) -> None:
    before = look_at(str(host.top / "app"))
    with pytest.raises(OpskitError, match=says):
        host.drill(**options(host))
    assert host.proof()["level"] == "content"
    assert host.left() == []
    assert look_at(str(host.top / "app")) == before


def test_a_full_disk_is_said_before(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _path: 1000)
    with pytest.raises(OpskitError, match=r"the restored copy needs .* 1000 B are free"):
        host.drill()


def test_a_user_who_is_not_here(host: Host) -> None:
    (host.top / "live.properties").write_text("User=nobody-here\n")
    with pytest.raises(OpskitError, match="this host does not have its user nobody-here"):
        host.drill()


SCHEMA = {"schema_query": "SELECT 'b'"}


@pytest.mark.parametrize(
    ("known", "migrate", "says"),
    [
        ("a b", [], ""),
        ("b c", ["touch", "{data}/migrated"], ""),
        ("b c", [], "is older than the release"),
        ("a", [], "does not know: it is newer"),
    ],
)
def test_schemas(host: Host, known: str, migrate: List[str], says: str) -> None:
    app = host.app
    app.params["databases"] = [{**app.params["databases"][0], **SCHEMA}]
    add_rows(app.at("data/app.db"), 1)
    app.backup()
    argv = [word.format(data=app.paths["data"]) for word in migrate]
    options: Dict[str, Any] = {"schema_command": ["printf", known.replace(" ", "\\n")], "migrate_command": argv}
    options["checks"] = [host.check(rows=201)]
    if says:
        with pytest.raises(OpskitError, match=says):
            host.drill(**options)
    else:
        assert host.drill(**options)["failure"] == ""
    assert not os.path.exists(app.at("data/migrated"))
    assert host.left() == []
    calls = (host.top / "calls").read_text()
    assert ("migrate.service" in calls) == bool(migrate)


@pytest.mark.parametrize("step", ["_place", "_settle", "_migrate", "_start", "_sweep"])
def test_killed_at_any_step_the_next_run_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    real = getattr(Drill, step)

    def killed(self: Drill, *words: Any) -> Any:
        if step != "_sweep":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.recovery_time_s is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *words)

    def child() -> None:
        monkeypatch.setattr(Drill, step, killed)
        host.drill()

    assert in_child(child) == -signal.SIGKILL
    assert host.left() != []
    assert host.proof()["level"] == "content"
    # A rehearsal takes it for what it is, and leaves it to a real run.
    assert host.drill(check_mode=True)["changed"]
    assert host.drill()["failure"] == ""
    assert host.left() == []


def test_mount_points_that_are_missing_are_made_and_removed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host that has the application without its data."""
    seen: List[List[str]] = []
    apart = Room.require_apart

    def look(self: Room) -> None:
        seen.append(sorted(bind.target for bind in self.binds if os.path.lexists(bind.target)))
        apart(self)

    monkeypatch.setattr(Room, "require_apart", look)
    monkeypatch.setattr(module, "OWN", ("/run",))
    host.app.destroy()
    assert host.drill()["failure"] == ""
    (there,) = seen
    assert set(host.app.paths.values()) <= set(there)
    assert [path for path in host.app.paths.values() if os.path.lexists(path)] == []


def test_a_database_in_a_server(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throw_away, "PORT", free_port())
    app = host.app
    user = "postgres" if os.geteuid() == 0 else ME
    # Short, for the path of the socket.
    with postgres.server() as server, short_folder() as folder:
        host.folder = folder
        server.run("CREATE ROLE app LOGIN PASSWORD 'right'; CREATE DATABASE app OWNER app")
        server.run("CREATE TABLE note AS SELECT generate_series(1, 70) AS n; ALTER TABLE note OWNER TO app", "app")
        app.write(".env", f"TOKEN=1\nDATABASE_URL=postgresql://app:right@127.0.0.1:{server.port}/app\n", 0o600)
        database = {"name": "main", "engine": "postgresql", "database": "app", "url_variable": "DATABASE_URL"}
        login = {"host": server.host, "port": server.port, "user": server.superuser}
        os.unlink(app.at("data/app.db"))
        app.params["databases"] = [{**database, **login}]
        before = app.objects()
        app.backup(shrink_limit=0)
        sessions = server.run("SELECT sessions FROM pg_stat_database WHERE datname = 'app'")
        app.params["databases"] = [{**database, "os_user": user}]
        result = host.drill(checks=[host.check(notes=70)])
        assert result["failure"] == ""
        assert {"cluster_s", "load_s", "compare_s"} < set(result["phases"])
        assert server.run("SELECT sessions FROM pg_stat_database WHERE datname = 'app'") == sessions
        assert host.left() == []
        app.params["databases"] = []
        with pytest.raises(OpskitError, match="the postgresql database main, which the description does not name"):
            host.drill()
        app.params["databases"] = [{**database, "os_user": user}]
        dump = max((path for path in app.objects() if path not in before and ".tar." not in path), key=os.path.getsize)
        flip_bit(dump)
        failed = host.drill(checks=[host.check(notes=70)])
        assert os.path.basename(dump) in failed["failure"]
        assert host.left() == []


class short_folder:
    """A path below the folder for temporary files that is not there, and is not there afterwards."""

    def __enter__(self) -> str:
        self.path = f"/tmp/opskit-drill-{os.getpid()}"
        return self.path

    def __exit__(self, *words: Any) -> None:
        assert not os.path.lexists(self.path)
