# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may log in, how, and what is said when it fails; which programs fit a server."""

from __future__ import annotations

import os
import pwd
import subprocess
import time

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.command import start
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import clients
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.contents import ask
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.errors import PostgresError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.login import Login
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import PASSWORD, Cluster
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

NOBODY = 65534


def who(login: Login) -> str:
    with login.session("postgres") as connection:
        return str(ask(connection, "SELECT current_user")[0][0])


def refused(login: Login) -> str:
    with pytest.raises(PostgresError) as caught:
        who(login)
    assert PASSWORD not in str(caught.value)
    assert caught.value.todo
    return str(caught.value)


def test_peer_as_the_servers_own_user(cluster: Cluster) -> None:
    before = (os.geteuid(), os.getegid(), os.getgroups(), os.environ.get("HOME"))
    login = cluster.admin._replace(os_user=cluster.server.user)
    assert who(login) == "postgres"
    assert (os.geteuid(), os.getegid(), os.getgroups(), os.environ.get("HOME")) == before
    words = subprocess.run(login.as_user(["id", "-un"]), stdout=subprocess.PIPE, check=True).stdout
    assert words.decode().strip() == cluster.server.user


def test_peer_as_another_user_is_refused(cluster: Cluster) -> None:
    other = pwd.getpwuid(NOBODY).pw_name
    if os.geteuid() == 0 and cluster.server.user != other:
        assert "Peer authentication failed" in refused(cluster.admin._replace(os_user=other))
    assert "has no user" in refused(cluster.admin._replace(os_user="no-such-user"))


def test_only_root_acts_as_another(cluster: Cluster) -> None:
    def ordinary() -> None:
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        with pytest.raises(PostgresError, match="only root can act as root"):
            cluster.admin._replace(os_user="root").check()

    assert in_child(ordinary) == 0


def test_passfile(cluster: Cluster) -> None:
    cluster.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    login = cluster.login("app")
    assert who(login) == "app"
    assert who(login._replace(host="127.0.0.1")) == "app"
    os.chmod(login.passfile, 0o640)
    assert "open to others" in refused(login)
    assert "can't be read" in refused(login._replace(passfile="/nowhere"))
    assert "password authentication failed" in refused(cluster.login("app", f"{PASSWORD}x"))
    assert "no password supplied" in refused(login._replace(passfile=cluster.file(f"elsewhere:*:*:*:{PASSWORD}\n")))
    assert PASSWORD not in str(login.environment("app"))


def test_service_file(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    cluster.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    home = os.fspath(tmp_path)
    monkeypatch.setenv("HOME", home)
    here = pwd.getpwuid(os.geteuid()).pw_dir
    with open(os.path.join(home, ".pg_service.conf"), "w", encoding="utf-8") as stream:
        stream.write(f"[shop]\nhost={cluster.server.host}\nport={cluster.server.port}\nuser=app\npassword={PASSWORD}\n")
    login = Login(service="shop")
    assert here != home
    assert who(login) == "app"
    assert login.where == "the service shop"
    assert not login.is_local
    assert "nowhere" in refused(Login(service="nowhere"))


def test_wrong_place(cluster: Cluster) -> None:
    assert "Connection refused" in refused(cluster.admin._replace(host="127.0.0.1", port=1))
    assert "No such file" in refused(cluster.admin._replace(host="/nowhere"))
    with pytest.raises(PostgresError, match='database "missing" does not exist'):
        cluster.database("missing").require()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGHOSTADDR", "127.0.0.9"),
        ("PGOPTIONS", "-c work_mem=x"),
        ("PGSERVICE", "none"),
        ("PGPASSWORD", "x"),
        ("PGDATABASE", "x"),
        ("PGSSLMODE", "x"),
    ],
)
def test_the_callers_variables_count_for_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert who(cluster.admin) == "postgres"
    assert os.environ[name] == value
    assert cluster.admin.environment("app").get(name) in (None, "app")


def test_what_a_role_has_set_changes_nothing(cluster: Cluster) -> None:
    database = cluster.make(sql="CREATE TABLE t (at timestamptz, paid money); INSERT INTO t VALUES ('2026-01-01 00:00+00', 1.5)")
    image, facts = cluster.dump(database)
    for setting in (
        "TimeZone TO 'Asia/Tokyo'",
        "DateStyle TO 'German'",
        "default_transaction_read_only TO on",
        "client_encoding TO 'LATIN1'",
    ):
        cluster.sql(f"BEGIN READ WRITE; ALTER ROLE postgres SET {setting}; COMMIT")
    try:
        assert database.is_as(facts)
        cluster.target().load(image, "", facts, "beside")
        assert cluster.target().difference(facts, "beside") == ""
    finally:
        cluster.sql("BEGIN READ WRITE; ALTER ROLE postgres RESET ALL; COMMIT")


def test_nothing_of_ours_outlives_us(cluster: Cluster) -> None:
    """The kernel forgets the bond when a program changes its user, so that it has to be made anew."""
    reader, writer = os.pipe()

    def child() -> None:
        process = start(cluster.admin._replace(os_user=cluster.server.user).as_user(["sh", "-c", "echo up; exec sleep 60"]))
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        os.write(writer, str(process.pid).encode())
        os.kill(os.getpid(), 9)

    assert in_child(child) == -9
    pid = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and state_of(pid) != "Z" and time.monotonic() < end:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}") or state_of(pid) == "Z"


def state_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_programs_of_the_servers_version_or_newer(cluster: Cluster) -> None:
    found = clients.installed("pg_dump")
    assert cluster.server.major in found
    assert clients.client("pg_dump", cluster.server.major) == found[cluster.server.major]
    assert clients.client("pg_dump", 9) == found[min(found)]
    assert clients.newest_client("pg_dump") == found[max(found)]
    with pytest.raises(PostgresError, match=rf"PostgreSQL 99 and needs pg_dump .*; the newest installed is {max(found)}") as caught:
        clients.client("pg_dump", 99)
    assert "postgresql-client-99" in caught.value.todo
    with pytest.raises(PostgresError, match="none is installed"):
        clients.client("pg_no_such", 15)
    assert (clients.major_of(150018), clients.version_text(150018)) == (15, "15.18")
