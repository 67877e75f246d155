# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps of a database in a real server, in a folder of their own, put back, refused, and killed anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.lock import flock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import backups, clients, contents, database, restore
from ansible_collections.opskit.runbooks.plugins.modules import pg_backup
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import Cluster
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

DATABASE = "app data"
SECRET = "hush-7d1f"
SOAK = os.environ.get("OPSKIT_TEST_SIZE") == "soak"

CONTENT = """
    CREATE TABLE ledger (id serial PRIMARY KEY, text text);
    INSERT INTO ledger (text) SELECT 'row ' || n FROM generate_series(1, 200) n;
    CREATE VIEW recent AS SELECT * FROM ledger WHERE id > 100;
    GRANT SELECT ON ledger TO clerk;
    SELECT lo_from_bytea(4711, 'a large object'::bytea);
    SELECT setval('ledger_id_seq', 900);
"""


class Place:
    """A database in the server, owned by ``app``, and the folder of its dumps."""

    def __init__(self, server: postgres.Server, root: Path, name: str = DATABASE) -> None:
        self.server = server
        self.name = name
        self.directory = str(root / "backup" / "postgresql")
        self.params: Dict[str, Any] = {
            "database": name,
            "directory": self.directory,
            "name": "app",
            "state": "present",
            "snapshot": "latest",
            "target": "",
            "keep": 7,
            "force": False,
            "compression": 6,
            "host": server.host,
            "port": server.port,
            "user": server.superuser,
            "passfile": None,
            "service": "",
            "os_user": "",
            "schema_query": "",
            "database_timeout": 10,
            "lock_timeout": 0,
        }

    def build(self) -> Place:
        self.remove()
        self.server.run(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'; CREATE ROLE clerk; CREATE DATABASE {self.quoted} OWNER app")
        self.sql(f"SET ROLE app; {CONTENT}")
        return self

    def remove(self) -> None:
        for name in self.databases():
            self.server.run(f"DROP DATABASE {contents.quote(name)} WITH (FORCE)")
        self.server.run("DROP ROLE IF EXISTS app; DROP ROLE IF EXISTS clerk; DROP ROLE IF EXISTS saver")

    @property
    def quoted(self) -> str:
        return contents.quote(self.name)

    def sql(self, text: str) -> str:
        return self.server.run(text, restore.conninfo(self.name))

    def databases(self) -> List[str]:
        kept = "('postgres', 'template0', 'template1')"
        return self.server.run(f"SELECT datname FROM pg_database WHERE datname NOT IN {kept} ORDER BY 1").splitlines()

    def run(self, check: bool = False, **changes: Any) -> Dict[str, Any]:
        return carry_out(pg_backup.build({**self.params, **changes}, Clock()), check, Clock())

    def restored(self, check: bool = False, **changes: Any) -> Dict[str, Any]:
        return self.run(check, state="restored", **changes)

    def dump(self, name: str = "", whole: bool = True) -> List[str]:
        """What pg_dump says of a database, without the order of rows, which a restore does not keep."""
        argv = [str(self.server.bin / "pg_dump"), "-h", self.server.host, "-p", str(self.server.port), "-U", self.server.superuser]
        wanted = restore.conninfo(name or self.name)
        done = subprocess.run([*argv, *["--create"] * whole, "-d", wanted], stdout=subprocess.PIPE, check=True, cwd="/")
        return sorted(line for line in done.stdout.decode().splitlines() if not re.match(r"\\(un)?restrict", line))

    def listing(self) -> List[str]:
        return sorted(os.listdir(self.directory)) if os.path.isdir(self.directory) else []

    def whole(self) -> List[str]:
        """The ids of the dumps that are found good by hash and by pg_restore."""
        directory = backups.DumpDirectory(self.directory, "app")
        return [
            one.id
            for one in directory.snapshots()
            if not one.damage
            and directory.is_stored(one)
            and all(check.ok for check in database.check_image(one.path, one.description["facts"]))
        ]


@pytest.fixture
def server(running: Cluster) -> postgres.Server:
    return running.server


@pytest.fixture
def place(server: postgres.Server, tmp_path: Path) -> Iterator[Place]:
    made = Place(server, tmp_path).build()
    yield made
    made.remove()


def steps(result: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    return [(step["step"], step["target"], step["reason"]) for step in result["plan"]]


def flip_bit(path: str, offset: int) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


# present --------------------------------------------------------------------------------------------


def test_check_run_check_run(place: Place) -> None:
    first_check = place.run(check=True)
    assert not os.path.exists(os.path.dirname(place.directory))
    old_umask = os.umask(0)
    try:
        first = place.run(schema_query="SELECT max(id) FROM public.ledger")
    finally:
        os.umask(old_umask)
    names = place.listing()
    second_check, second = place.run(check=True), place.run()
    assert [one["changed"] for one in (first_check, first, second_check, second)] == [True, True, False, False]
    assert steps(first_check) == steps(first) == [("take snapshot", "<new>", "there is no snapshot yet")]
    assert steps(second_check) == steps(second) == []
    assert first_check["snapshot"] == {}
    assert second["snapshot"] == first["snapshot"]
    identity = first["snapshot"]["id"]
    assert identity in second["reason"]
    assert place.listing() == names == [".app.lock", f"{identity}.dump", f"{identity}.globals.sql", f"{identity}.json"]
    assert os.stat(place.directory).st_mode & 0o777 == 0o700
    assert all(os.stat(os.path.join(place.directory, name)).st_mode & 0o777 == 0o600 for name in names)
    # The large object counts as a table of one.
    assert (first["snapshot"]["rows"], first["snapshot"]["tables"], first["snapshot"]["schema_version"]) == (201, 2, "200")
    assert first["snapshot"]["globals"]["verifiers"] is True
    assert all(check["ok"] for check in first["checks"])
    assert "pg_restore" in [check["check"] for check in first["checks"]]
    text = subprocess.run([clients.newest_client("pg_restore"), "-f", "-", first["snapshot"]["path"]], stdout=subprocess.PIPE, check=True)
    assert text.stdout.count(b"\trow ") == 200
    verifiers = re.findall(r"SCRAM-\S+", Path(first["snapshot"]["globals"]["path"]).read_text())
    assert verifiers
    assert verifiers[0] not in json.dumps([first, second])


def test_only_what_concerns_the_database_makes_a_new_one(place: Place) -> None:
    place.run()
    place.server.run("CREATE TABLE elsewhere (); DROP TABLE elsewhere")
    fingerprint = json.loads(Path(place.directory, place.listing()[-1]).read_text())["fingerprint"]
    assert not place.run(check=True)["changed"]
    assert json.loads(Path(place.directory, place.listing()[-1]).read_text())["fingerprint"] == fingerprint
    assert not place.run()["changed"]
    # The comparison is remembered.
    assert json.loads(Path(place.directory, place.listing()[-1]).read_text())["fingerprint"] != fingerprint
    for statement, reason in (
        ("UPDATE ledger SET text = 'other' WHERE id = 1", "the database was written"),
        ("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'", "the database was written"),
        ("SELECT nextval('ledger_id_seq')", "the database was written"),
        (f"ALTER DATABASE {place.quoted} SET app.mode TO 'slow'", "the database was written"),
        ("ALTER ROLE clerk PASSWORD 'other'", "roles of the server were changed"),
    ):
        place.sql(statement)
        planned, done = place.run(check=True), place.run()
        assert steps(planned) == steps(done)
        assert done["reason"] == f"{reason} since the newest snapshot", statement
        assert not place.run()["changed"]
    assert place.run(force=True)["reason"] == "a new one was asked for"


def test_retention_keeps_the_newest_good_ones(place: Place) -> None:
    ids = [place.run(keep=3, force=True)["snapshot"]["id"] for _number in range(4)]
    assert place.whole() == ids[-3:]
    planned, done = place.run(check=True, keep=1), place.run(keep=1)
    assert planned["deleted"] == done["deleted"] == ids[1:3]
    assert place.listing() == [".app.lock", *(ids[3] + ending for ending in (".dump", ".globals.sql", ".json"))]
    with pytest.raises(OpskitError, match="keep is 0"):
        place.run(keep=0)


@pytest.mark.parametrize("ending", [".dump", ".globals.sql"])
def test_damage_is_noticed_and_a_good_one_taken(place: Place, ending: str) -> None:
    kept = place.run()["snapshot"]["id"]
    first = place.run(keep=2, force=True)["snapshot"]["id"]
    flip_bit(os.path.join(place.directory, first + ending), 700)
    planned, done = place.run(check=True, keep=2), place.run(keep=2)
    assert steps(planned) == steps(done)
    assert [step[0] for step in steps(done)] == ["mark damaged", "take snapshot"]
    assert place.whole() == [kept, done["snapshot"]["id"]]
    os.unlink(os.path.join(place.directory, done["snapshot"]["id"] + ending))
    assert "missing" in place.run(keep=2)["damaged"][-1]["damage"]


def test_dump_without_description_is_reported_and_left(place: Place) -> None:
    first = place.run()["snapshot"]
    os.unlink(first["path"].replace(".dump", ".json"))
    assert place.run(keep=1)["orphans"] == [first["path"], first["globals"]["path"]]
    assert os.path.exists(first["path"])


def test_full_disk_leaves_the_earlier_ones_and_nothing_else(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root")
    os.makedirs(place.directory)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place.directory], check=True)
    try:
        place.run()
        before = place.listing()
        # The server compresses it to a hundredth, so that the room is there before the dump is begun.
        place.sql("INSERT INTO ledger (text) SELECT repeat('x', 1000000) FROM generate_series(1, 16)")
        with pytest.raises(OSError, match="No space left"):
            place.run(compression=0, keep=1)
        assert place.listing() == before
        place.sql("INSERT INTO ledger (text) SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200000) n, generate_series(1, 2)")
        with pytest.raises(OpskitError, match=r"are needed and .* are free"):
            place.run(check=True)
        assert place.listing() == before
        assert len(place.whole()) == 1
    finally:
        subprocess.run(["umount", place.directory], check=True)


def test_two_runs_at_once(place: Place) -> None:
    place.run()
    with flock(os.path.join(place.directory, ".app.lock")):
        for state in ("present", "restored"):
            with pytest.raises(OpskitError, match="another run is at work here"):
                place.run(state=state, force=True)


def test_another_database_under_the_same_name_is_refused(place: Place) -> None:
    place.run()
    place.server.run("CREATE DATABASE another")
    with pytest.raises(OpskitError, match=r"the snapshots named app are of app data on .*another name"):
        place.run(database="another")


# restored -------------------------------------------------------------------------------------------


def test_everything_comes_back(place: Place) -> None:
    place.server.run(
        f"GRANT CONNECT, TEMPORARY ON DATABASE {place.quoted} TO clerk WITH GRANT OPTION; REVOKE ALL ON DATABASE {place.quoted} FROM PUBLIC;"
        f"ALTER DATABASE {place.quoted} SET search_path TO \"$user\", public, 'x y'; ALTER DATABASE {place.quoted} SET app.key TO '{SECRET}';"
        f"ALTER ROLE clerk IN DATABASE {place.quoted} SET work_mem TO '7MB';"
        f"COMMENT ON DATABASE {place.quoted} IS 'it''s'; ALTER DATABASE {place.quoted} CONNECTION LIMIT 33"
    )
    before = place.dump()
    place.run()
    place.sql("DELETE FROM public.ledger WHERE id > 3; SELECT lo_unlink(4711); DROP VIEW public.recent")
    lost = place.dump(whole=False)
    check, run = place.restored(check=True), place.restored()
    assert steps(check) == steps(run)
    assert [step[0] for step in steps(run)] == ["load copy", "set aside", "put in place"]
    again_check, again = place.restored(check=True), place.restored()
    assert [one["changed"] for one in (check, run, again_check, again)] == [True, True, False, False]
    assert place.dump() == before
    assert place.databases() == sorted([place.name, run["aside"]])
    assert run["asides"] == again["asides"] == [{"database": run["aside"], "drop": f"DROP DATABASE {contents.quote(run['aside'])}"}]
    assert again["aside"] == ""
    assert SECRET not in json.dumps([check, run, again])
    # The one that was replaced is whole, and goes by the command in the result.
    place.server.run(f"ALTER DATABASE {contents.quote(run['aside'])} ALLOW_CONNECTIONS true")
    assert place.dump(run["aside"], whole=False) == lost
    place.server.run(again["asides"][0]["drop"])
    assert place.restored()["asides"] == []


def test_changed_settings_are_not_shown(place: Place) -> None:
    place.server.run(f"ALTER DATABASE {place.quoted} SET app.key TO 'before'")
    place.run()
    place.server.run(f"ALTER DATABASE {place.quoted} SET app.key TO '{SECRET}'")
    result = place.restored()
    assert "settings" in result["reason"]
    assert SECRET not in json.dumps(result)


def test_missing_database_and_roles_are_made(place: Place) -> None:
    place.run()
    before = place.dump()
    place.remove()
    check, run = place.restored(check=True), place.restored()
    assert steps(check) == steps(run)
    assert steps(run)[0][:2] == ("make roles", "app, clerk")
    assert run["aside"] == ""
    assert place.databases() == [place.name]
    assert place.dump() == before
    # With the password of then.
    with pg_backup.Login(host="127.0.0.1", port=place.server.port, user="app").session(place.name, SECRET) as connection:
        assert contents.ask(connection, "SELECT count(*) FROM public.ledger") == [(200,)]


def test_another_target_leaves_the_live_one_alone(place: Place) -> None:
    place.run()
    before = place.dump()
    assert place.restored(target="copy")["changed"]
    assert not place.restored(target="copy")["changed"]
    assert place.dump() == before
    assert place.dump("copy", whole=False) == place.dump(whole=False)


def test_earlier_snapshot_by_its_id(place: Place) -> None:
    first = place.run()["snapshot"]["id"]
    place.sql("DELETE FROM public.ledger")
    place.run()
    place.restored(snapshot=first)
    assert place.sql("SELECT count(*) FROM public.ledger") == "200"
    with pytest.raises(OpskitError, match="there is no snapshot other"):
        place.restored(snapshot="other")


def test_sessions_are_ended(place: Place) -> None:
    place.run()
    place.sql("DELETE FROM public.ledger")
    login = pg_backup.Login(host=place.server.host, port=place.server.port, user=place.server.superuser)

    def ask_again() -> None:
        with login.session(place.name) as connection:
            place.restored()
            contents.ask(connection, "SELECT 1")

    with pytest.raises(OpskitError, match=r"terminating connection|closed the connection|connection already closed"):
        ask_again()
    assert place.sql("SELECT count(*) FROM public.ledger") == "200"


def test_damaged_database_is_replaced(place: Place) -> None:
    """What can't even be read is what a restore is for."""
    place.run()
    place.server.run(f"ALTER DATABASE {place.quoted} ALLOW_CONNECTIONS false")
    assert "it takes no connections" in place.restored()["reason"]
    assert place.sql("SELECT count(*) FROM public.ledger") == "200"


def test_damaged_dump_is_refused_before_anything_is_touched(place: Place) -> None:
    first = place.run()["snapshot"]
    place.sql("DELETE FROM public.ledger")
    before = place.databases()
    for path in (first["path"], first["globals"]["path"]):
        flip_bit(path, 500)
        with pytest.raises(OpskitError, match=r"the snapshot is damaged .*nothing was touched"):
            place.restored()
        flip_bit(path, 500)
    assert place.databases() == before
    assert ".app.restore.json" not in place.listing()


def test_failed_load_leaves_the_live_one_and_no_copy(place: Place) -> None:
    """A dump that needs what this server does not have."""
    place.run()
    place.sql("DELETE FROM public.ledger")
    before, dump = place.databases(), place.dump()
    path = Path(place.directory, place.listing()[-1])
    description = json.loads(path.read_text())
    description["facts"]["tables"]["public.ledger"]["rows"] = 7
    path.write_text(json.dumps(description))
    with pytest.raises(OpskitError, match=r"the restored copy is not what was dumped.*200 rows, 7 recorded"):
        place.restored()
    assert place.databases() == before
    assert place.dump() == dump
    assert ".app.restore.json" not in place.listing()


@pytest.mark.parametrize("name", ["q\"uo'te", "eq=ual", "über süß", "é" * 31 + "x", "%s\\n", "-d"])
def test_odd_names(server: postgres.Server, tmp_path: Path, name: str) -> None:
    assert len(name.encode()) <= 63
    place = Place(server, tmp_path, name).build()
    try:
        place.params["name"] = ""
        before = place.dump()
        assert place.run()["changed"]
        assert not place.run()["changed"]
        place.sql("DELETE FROM public.ledger")
        assert place.restored()["changed"]
        assert not place.restored()["changed"]
        assert place.dump() == before
    finally:
        place.remove()


# refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"database": "é" * 32}, "has 64 bytes"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist.*Correct the name'),
        ({"host": "127.0.0.1", "user": "app"}, "no password supplied.*passfile"),
        ({"os_user": "no-such-user"}, "this host has no user 'no-such-user'"),
        ({"port": 1}, "Start the server, or correct host and port"),
        ({"directory": "here"}, "the directory is not an absolute path"),
        ({"passfile": "/nowhere/pgpass"}, "the passfile can't be read"),
        ({"compression": 10}, "compression is 10"),
        ({"schema_query": "SELECT 1, 2"}, "Correct schema_query"),
        ({"name": "a/b"}, "can't be the name"),
    ],
)
def test_refused_before_anything_is_made(place: Place, changes: Dict[str, Any], message: str) -> None:
    for check in (True, False):
        with pytest.raises(OpskitError, match=message):
            place.run(check, **changes)
    assert not os.path.exists(os.path.dirname(place.directory))


def test_passfile(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "passfile"
    path.write_text("*:*:*:app:wrong\n")
    path.chmod(0o600)
    login: Dict[str, Any] = {"host": "127.0.0.1", "user": "app", "passfile": str(path)}
    with pytest.raises(OpskitError, match=r"password authentication failed.*Mend the password"):
        place.run(**login)
    path.write_text(f"*:*:*:app:{SECRET}\n")
    # Not a superuser: without verifiers.
    assert place.run(**login)["snapshot"]["globals"]["verifiers"] is False
    path.chmod(0o640)
    with pytest.raises(OpskitError, match=r"open to others.*chmod 0600"):
        place.run(**login)
    path.chmod(0o600)
    place.sql("DELETE FROM public.ledger")
    with pytest.raises(OpskitError, match=r"may not make databases.*CREATEDB"):
        place.restored(**login)
    assert ".app.restore.json" not in place.listing()


@pytest.mark.parametrize("target", ["postgres", "template1"])
def test_databases_of_the_server_are_not_exchanged(place: Place, target: str) -> None:
    place.run()
    with pytest.raises(OpskitError, match="belongs to the server itself"):
        place.restored(target=target)


# killed ---------------------------------------------------------------------------------------------

CHANGES = ("os.rename", "os.remove", "os.mkdir", "subprocess.Popen")


def events_in(work: Callable[[], Any], kill_at: int = 0) -> List[str]:
    """Run something in a child and return when it asked a server, changed a file or started a program: a word for each.

    None where it was killed in place of the n-th.
    """
    reader, writer = os.pipe()

    def child() -> None:
        seen: List[str] = []

        def note(event: str) -> None:
            seen.append(event)
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: Tuple[Any, ...]) -> None:
            written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in CHANGES or written or (event == "ctypes.dlsym" and args[1] == "renameat2"):
                note(event)

        for module in (backups, contents, database, restore):
            real = module.ask

            def counted(*args: Any, real: Any = real) -> Any:
                note("ask")
                return real(*args)

            vars(module)["ask"] = counted
        sys.addaudithook(hook)
        work()
        os.write(writer, "\n".join(seen).encode())

    code = in_child(child)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found = stream.read().split()
    assert code == (-signal.SIGKILL if kill_at else 0)
    return found


def points(events: List[str], count: int) -> List[int]:
    total = len(events) - 1
    assert total > count, "hardly anything was seen"
    return list(range(1, total + 1)) if SOAK else sorted({1 + round(number * (total - 1) / (count - 1)) for number in range(count)})


def test_killed_anywhere_while_it_is_taken(place: Place, tmp_path: Path) -> None:
    for _number in range(2):
        place.run(force=True)
    first = place.whole()
    shutil.copytree(place.directory, str(tmp_path / "copy"))

    def take() -> Any:
        return place.run(keep=2, force=True)

    for number in points(events_in(take), 8):
        shutil.rmtree(place.directory)
        shutil.copytree(str(tmp_path / "copy"), place.directory)
        events_in(take, number)
        assert len(place.whole()) >= 2, number
        assert first[-1] in place.whole(), number
        take()
        assert len(place.whole()) == 2, number
        assert [name for name in place.listing() if name.startswith(".") or ".tmp" in name] == [".app.lock"]
        # The dump of a run that was killed does not go on by itself.
        assert place.server.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opskit'") == "0"


def test_killed_anywhere_while_it_is_restored(place: Place) -> None:
    place.run()
    good = place.dump()
    place.sql("DELETE FROM public.ledger WHERE id > 3")
    lost = place.dump()
    events = events_in(place.restored)
    assert place.dump() == good
    rolled_back = completed = 0
    # Also in place of the removal of the journal, when the names are exchanged.
    exchanged = len(events) - events[::-1].index("os.remove")
    for number in [*points(events, 8), exchanged]:
        for entry in place.restored()["asides"]:
            place.server.run(entry["drop"])
        place.sql("DELETE FROM public.ledger WHERE id > 3")
        events_in(place.restored, number)
        if place.server.run(f"SELECT datallowconn FROM pg_database WHERE datname = '{place.name}'") == "t":
            assert place.dump() in (good, lost), number
        if os.path.exists(os.path.join(place.directory, ".app.restore.json")):
            with pytest.raises(OpskitError, match=r"a restore of this database was interrupted.*state=restored"):
                place.run()
        planned, result = place.restored(check=True), place.restored()
        assert steps(planned) == steps(result)
        names = [step[0] for step in steps(result)]
        rolled_back += "roll back restore" in names
        completed += "complete restore" in names
        assert place.dump() == good, number
        assert len(result["asides"]) == 1, number
        assert place.databases() == sorted([place.name, result["asides"][0]["database"]]), number
        assert not place.restored()["changed"]
        assert ".app.restore.json" not in place.listing()
    assert rolled_back > 2
    assert completed > 0


def test_interrupted_restore_of_another_target_is_finished_first(place: Place) -> None:
    place.run()
    place.sql("DELETE FROM public.ledger")
    events = events_in(lambda: place.restored(check=True))
    events_in(place.restored, len(events) + 12)
    with pytest.raises(OpskitError, match=r"an interrupted restore into app data on .*its own target"):
        place.restored(target="copy")
    assert place.restored()["changed"]
