# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import check
from ansible_collections.opskit.runbooks.plugins.module_utils._application.check import ApplicationCheck
from ansible_collections.opskit.runbooks.plugins.module_utils._application.description import database_spec
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out


def described(folder: Path, **changes: Any) -> Dict[str, Any]:
    """A description without a mistake, of an application that need not be there."""
    description: Dict[str, Any] = {
        "name": "gateway",
        "root": str(folder),
        "owner": "",
        "group": "",
        "paths": {
            "data": f"{folder}/data",
            "environment": f"{folder}/.env",
            "config": f"{folder}/config",
            "projects": f"{folder}/projects",
        },
        "logs": [f"{folder}/data/logs"],
        "volatile": [f"{folder}/data/cache"],
        "databases": [{"name": "gateway", "engine": "sqlite", "path": f"{folder}/data/gateway.db"}],
        "scopes": {"config": {"paths": [f"{folder}/config"]}},
        "service_manager": "command",
        "units": [],
        "worker_units": [],
        "start_command": ["/bin/true"],
        "stop_command": ["/bin/true"],
        "status_command": ["/bin/true"],
        "pause_command": [],
        "resume_command": [],
        "paused_command": [],
        "live_url": "",
        "ready_url": "http://127.0.0.1:8000/readyz",
        "metrics_url": "",
        "smoke_checks": [{"id": "chat", "type": "http", "url": "http://127.0.0.1:8000/"}],
        "state_dir": "/var/lib/opskit-none/gateway",
        "start_timeout": 60,
        "stop_timeout": 60,
    }
    description.update(changes)
    unset = dict.fromkeys(database_spec()["options"])
    description["databases"] = [{**unset, **database} for database in description["databases"]]
    return description


def findings(folder: Path, **changes: Any) -> List[str]:
    return list(ApplicationCheck(described(folder, **changes)).findings())


def test_good_description_passes_without_the_application_being_there(tmp_path: Path) -> None:
    result = carry_out(ApplicationCheck(described(tmp_path / "absent")), False, Clock())
    assert result["changed"] is False
    assert result["plan"] == []
    assert result["uid"] == os.geteuid()


def test_good_description_passes_with_the_application_there(tmp_path: Path) -> None:
    for folder in ("data", "config", "projects"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".env").write_text("A=1")
    (tmp_path / "data" / "gateway.db").write_bytes(b"")
    assert findings(tmp_path) == []


def test_unset_paths_are_left_out(tmp_path: Path) -> None:
    operation = ApplicationCheck(described(tmp_path, paths={"data": f"{tmp_path}/data", "config": ""}))
    assert carry_out(operation, True, Clock())["paths"] == {"data": f"{tmp_path}/data"}


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"name": "../x"}, "application_name"),
        ({"paths": {}, "databases": []}, "application_data_dir"),
        ({"paths": {"data": "data"}}, "application_data_dir"),
        ({"paths": {"environment": "/a/../b"}}, "application_environment_file"),
        ({"paths": {"config": "/a//b"}}, "application_config_dir"),
        ({"paths": {"up loads": "/srv/x"}}, "application_extra_paths"),
        ({"paths": {"uploads": "srv"}}, "application_extra_paths (uploads)"),
        ({"logs": ["logs"]}, "application_logs"),
        ({"root": "here"}, "application_root"),
        ({"state_dir": "state"}, "application_state_dir"),
        ({"owner": "no-such-user-here"}, "application_owner"),
        ({"group": "no-such-group-here"}, "application_group"),
        ({"stop_command": []}, "application_start_command"),
        ({"units": ["gateway.service"]}, "application_units"),
        ({"pause_command": ["/bin/true"]}, "application_pause_command"),
        ({"resume_command": ["/bin/true"]}, "application_resume_command"),
        ({"pause_command": ["/bin/true"], "paused_command": ["/bin/true"]}, "application_pause_command"),
        ({"start_timeout": 0}, "application_start_timeout"),
        ({"ready_url": "127.0.0.1:8000"}, "application_ready_url"),
        ({"live_url": "ftp://host/"}, "application_live_url"),
        ({"metrics_url": "http://[::1/"}, "application_metrics_url"),
        ({"metrics_url": "http://host:99999/"}, "application_metrics_url"),
        ({"smoke_checks": [{"type": "http"}]}, "application_smoke_checks"),
        ({"scopes": {"a b": {}}}, "application_scopes"),
        ({"scopes": {"it": "wrong"}}, "application_scopes"),
        ({"scopes": {"it": {"paths": ["relative"]}}}, "application_scopes"),
        ({"scopes": {"it": {"paths": ["/a/{value}"]}}}, "application_scopes"),
        ({"scopes": {"it": {"paths": ["/a"], "value": "perhaps"}}}, "application_scopes"),
        ({"scopes": {"it": {"rows": [{"table": "t", "identity": ["name"], "restore": "no"}]}}}, "application_scopes"),
        ({"scopes": {"it": {"rows": [{"table": "", "identity": ["name"]}]}}}, "application_scopes"),
        ({"scopes": {"it": {"rows": [{"table": "t", "identity": [1]}]}}}, "application_scopes"),
        ({"scopes": {"it": {"rows": ["t"]}}}, "application_scopes"),
        ({"scopes": {"it": {"rows": [{"table": "t", "identity": ["name"]}]}}, "databases": []}, "application_scopes"),
        ({"smoke_checks": [{"id": "ready", "type": "http"}]}, "application_smoke_checks"),
        ({"smoke_checks": [{"id": "a", "type": "tcp"}, {"id": "a", "type": "tcp"}]}, "application_smoke_checks"),
    ],
)
def test_one_mistake_is_one_finding_by_its_variable(tmp_path: Path, changes: Dict[str, Any], variable: str) -> None:
    found = findings(tmp_path, **changes)
    assert len(found) == 1, found
    assert found[0].startswith(f"{variable}: ")


def test_pause_needs_no_more_than_two_commands(tmp_path: Path) -> None:
    both = {"pause_command": ["/bin/true"], "resume_command": ["/bin/true"]}
    assert findings(tmp_path, **both) == findings(tmp_path, **both, paused_command=["/bin/true"]) == []
    assert len(findings(tmp_path, paused_command=["/bin/true"])) == 2


def test_name_that_is_not_set_is_the_only_finding(tmp_path: Path) -> None:
    assert len(findings(tmp_path, name="", root="/opt/", ready_url="nonsense")) == 1


def test_relative_root_is_said_once_and_not_for_what_is_made_from_it() -> None:
    assert findings(Path("rel")) == ["application_root: 'rel' is not a plain absolute path (no '..', '.' or '//')"]


def test_what_is_there_has_to_be_of_the_right_kind(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    (tmp_path / ".env").mkdir()
    found = findings(tmp_path)
    assert [finding.split(":")[0] for finding in found] == [
        "application_data_dir",
        "application_environment_file",
        # The database can't be looked at: its folder is a file.
        "application_databases (database gateway)",
    ]


def test_database_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "gateway.db").mkdir(parents=True)
    assert findings(tmp_path) == [f"application_databases (database gateway): {tmp_path}/data/gateway.db is there, but it is not a file"]


@pytest.mark.parametrize("kind", ["logs", "volatile"])
@pytest.mark.parametrize("inside", ["", "/data"])
def test_area_that_is_not_restored_must_not_hold_what_is(tmp_path: Path, kind: str, inside: str) -> None:
    found = findings(tmp_path, **{kind: [f"{tmp_path}{inside}"]})
    assert any(finding.startswith(f"application_{kind}: ") and "gateway.db" in finding for finding in found)
    assert any("(application_data_dir)" in finding for finding in found)


def test_neighbour_with_the_same_beginning_is_not_inside(tmp_path: Path) -> None:
    assert findings(tmp_path, volatile=[f"{tmp_path}/dat"], state_dir=f"{tmp_path}/data-state") == []


def test_state_folder_must_survive_a_restore(tmp_path: Path) -> None:
    assert [finding.split(":")[0] for finding in findings(tmp_path, state_dir=f"{tmp_path}/data/opskit")] == ["application_state_dir"]


def test_same_path_under_two_names(tmp_path: Path) -> None:
    found = findings(tmp_path, paths={"data": f"{tmp_path}/data", "uploads": f"{tmp_path}/data/"})
    assert found == [f"application_extra_paths (uploads): {tmp_path}/data/ is the same path as application_data_dir"]


def test_databases_need_names_of_their_own(tmp_path: Path) -> None:
    twice = [{"name": "a", "engine": "sqlite", "path": f"/srv/none/{number}.db"} for number in (1, 2)]
    assert findings(tmp_path, databases=twice) == ["application_databases: the name 'a' is there 2 times; give each database its own"]


def test_password_in_a_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, ready_url="http://me:hunter2@127.0.0.1/readyz")
    assert "application_ready_url" in found
    assert "hunter2" not in found


def systemd(**changes: Any) -> Dict[str, Any]:
    service: Dict[str, Any] = {
        "service_manager": "systemd",
        "start_command": [],
        "stop_command": [],
        "status_command": [],
        "units": ["gateway@blue.service", "a-b_c.d"],
    }
    service.update(changes)
    return service


def test_systemd_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SYSTEMD", str(tmp_path))
    assert findings(tmp_path, **systemd()) == []
    assert [finding.split(":")[0] for finding in findings(tmp_path, **systemd(worker_units=["a b", "-x/y"]))] == [
        "application_worker_units",
        "application_worker_units",
    ]
    assert [finding.split(":")[0] for finding in findings(tmp_path, **systemd(start_command=["x"]))] == ["application_start_command"]


def test_units_where_no_systemd_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SYSTEMD", str(tmp_path / "absent"))
    assert [finding.split(":")[0] for finding in findings(tmp_path, **systemd())] == ["application_service_manager"]
    # Without units nothing is started by systemd, so a backup alone works anywhere.
    assert findings(tmp_path, **systemd(units=[])) == []


def test_error_holds_all_findings_and_what_to_do(tmp_path: Path) -> None:
    operation = ApplicationCheck(described(tmp_path, owner="no-such-user-here", ready_url="x", start_timeout=0))
    with pytest.raises(OpskitError) as caught:
        carry_out(operation, False, Clock())
    message = str(caught.value)
    assert "3 mistakes:" in message
    for part in ("application_owner", "application_ready_url", "application_start_timeout", "Nothing was touched", "'gateway'"):
        assert part in message
