# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets with databases in servers: what lies between the clean states, and what makes the credentials of a set useless."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import contents, database, restore
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.test_backup_postgresql import (
    DATABASE,
    PASSWORD,
    QUOTED,
    PostgresApp,
    other_password,
)
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    add_rows,
    make_database,
    plan_of,
    rows_of,
)
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture
def app(tmp_path: Path, server: postgres.Server) -> Iterator[PostgresApp]:
    made = PostgresApp(str(tmp_path), server).build()
    yield made
    made.reset()


def killed_after(work: Callable[[], Any], statement: str) -> None:
    """Run something in a child that is killed once it has told a server what matches."""

    def child() -> None:
        for module in (contents, database, restore):
            real = module.ask

            def killing(connection: Any, text: str, *args: Any, real: Any = real) -> Any:
                rows = real(connection, text, *args)
                if re.match(statement, text):
                    os.kill(os.getpid(), signal.SIGKILL)
                return rows

            vars(module)["ask"] = killing
        work()

    assert in_child(child) == -signal.SIGKILL


def test_killed_with_the_live_database_closed(app: PostgresApp) -> None:
    app.backup()
    saved = app.dump()
    app.sql("DELETE FROM tag")
    killed_after(app.restore, f'ALTER DATABASE "{DATABASE}" ALLOW_CONNECTIONS false')
    app.restore(check=True)
    assert app.restore()["recovered"] != ""
    assert app.dump() == saved


def test_a_role_that_is_missing_does_not_hide_another_one_with_another_password(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.sql("DROP OWNED BY clerk")
    app.server.run("DROP ROLE clerk")
    with pytest.raises(OpskitError, match="could not log in"):
        app.restore(check=True)


def test_a_new_password_comes_back_with_its_role(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.backup()
    app.reset()
    app.server.run("DROP ROLE clerk; DROP ROLE app")
    app.restore()
    app.restore(check=True)


def test_a_role_that_is_made_without_its_password(app: PostgresApp) -> None:
    """The login of the backup may not read passwords, so the set has none: that shows when the role is there."""
    passfile = app.write("../passfile", "*:*:*:app:" + PASSWORD.replace(":", "\\:") + "\n", 0o600)
    app.item.update(host="127.0.0.1", user="app", passfile=os.path.realpath(passfile))
    app.backup()
    app.reset()
    app.server.run("DROP ROLE clerk; DROP ROLE app")
    app.item.update(host=app.server.host, user=app.server.superuser, passfile="")
    files = app.live()
    with pytest.raises(OpskitError, match="could not log in"):
        app.restore()
    assert (app.live(), DATABASE in app.databases()) == (files, False)
    app.restore(credentials="set_role")
    assert app.sql("SELECT count(*) FROM note") == "300"
    app.restore(check=True)


def test_what_was_staged_with_another_environment_file_is_staged_again(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.sql("DELETE FROM tag")
    app.restore(state="staged", credentials="set_role")
    app.restore(credentials="keep_live")
    assert "new%20one@" in Path(app.at(".env")).read_text()


def test_way_back_to_an_environment_file_without_a_url(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.write(".env", "TOKEN=1\n", 0o600)
    app.restore(credentials="set_role")
    app.restore(state="rolled_back")
    assert Path(app.at(".env")).read_text() == "TOKEN=1\n"


def test_failed_exchange_with_an_environment_file_without_a_url(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.write(".env", "TOKEN=1\n", 0o600)
    killed_after(lambda: app.restore(credentials="set_role"), "ALTER DATABASE .* RENAME")
    app.restore(credentials="set_role")
    app.restore(check=True)


def test_a_described_database_that_the_set_does_not_hold(app: PostgresApp) -> None:
    app.params["databases"] = []
    app.backup()
    app.params["databases"] = [app.item]
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    assert any("does not hold" in line and "database app" in line for line in app.restore()["warnings_"])


def test_environment_file_inside_another_path(app: PostgresApp) -> None:
    os.rename(app.at(".env"), app.at("config/.env"))
    app.paths["environment"] = app.at("config/.env")
    app.backup()
    app.server.run("ALTER ROLE app PASSWORD 'new one'")
    with pytest.raises(OpskitError, match="could not log in"):
        app.restore()
    live = Path(app.at("config/.env")).read_text()
    app.write("config/.env", live.replace(QUOTED, "new%20one"), 0o600)
    app.sql("DELETE FROM tag")
    app.restore(credentials="keep_live")
    assert "new%20one" in Path(app.at("config/.env")).read_text()
    assert not app.restore(credentials="keep_live")["changed"]


@pytest.mark.parametrize("state", ["restored", "rolled_back"])
def test_two_databases_in_servers_and_one_file_are_exchanged_together(app: PostgresApp, state: str) -> None:
    make_database(app.at("data/local.db"), 10)
    app.server.run('CREATE DATABASE "app two"')
    app.server.run("CREATE TABLE n AS SELECT 1 AS n", "app two")
    second = {**app.item, "name": "second", "database": "app two", "url_variable": "", "schema_query": ""}
    app.params["databases"] = [app.item, second, {"name": "local", "engine": "sqlite", "path": app.at("data/local.db")}]

    def seen() -> Tuple[str, str, int]:
        return app.sql("SELECT count(*) FROM tag"), app.server.run("SELECT count(*) FROM n", "app two"), rows_of(app.at("data/local.db"))

    app.backup()
    old = seen()
    app.sql("DELETE FROM tag")
    app.server.run("INSERT INTO n VALUES (2)", "app two")
    add_rows(app.at("data/local.db"), 1)
    later = seen()
    if state == "rolled_back":
        app.restore()
        later, old = old, later
    killed_after(
        lambda: app.restore(state=state), f'ALTER DATABASE "{"app two" if state == "restored" else DATABASE}" ALLOW_CONNECTIONS false'
    )
    planned, result = app.restore(check=True, state=state), app.restore(state=state)
    assert plan_of(planned) == plan_of(result)
    assert result["recovered"] != ""
    assert seen() == old
    app.restore(state="rolled_back" if state == "restored" else "restored")
    assert seen() == later
    app.restore(state="purged")
    assert app.databases() == [DATABASE, "app two"]


@pytest.mark.parametrize("state", ["restored", "rolled_back"])
def test_the_server_goes_away_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The record tells by itself that something was begun, and once the server is back one more run finishes."""
    with postgres.server() as server:
        app = PostgresApp(str(tmp_path), server).build()
        app.backup()
        old = app.sql("SELECT count(*) FROM tag")
        app.sql("DELETE FROM tag")
        if state == "rolled_back":
            app.restore()
            old = "0"
        real = restore.ask

        def going(connection: Any, text: str, *args: Any) -> Any:
            if " RENAME TO " in text:
                server.stop(signal.SIGQUIT)
            return real(connection, text, *args)

        with monkeypatch.context() as patched:
            patched.setattr(restore, "ask", going)
            with pytest.raises(OpskitError):
                app.restore(state=state)
        with open(os.path.join(app.state_dir, "restore.json"), encoding="utf-8") as stream:
            assert json.load(stream)["phase"] in ("exchanging", "rolling back")
        server.start()
        assert app.restore(state=state)["recovered"] != ""
        assert app.sql("SELECT count(*) FROM tag") == old
