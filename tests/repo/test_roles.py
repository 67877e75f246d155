# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's defaults, its argument specification and its task files describe one interface."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").glob("*") if path.is_dir())
INCLUDES = re.compile(r"^(ansible\.builtin\.)?(include|import)_role$")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def specs(role: Path) -> dict[str, Any]:
    return (read(role / "meta/argument_specs.yml") or {}).get("argument_specs", {})


def entry_points_used(value: Any) -> Iterator[tuple[str, str]]:
    """Role and entry point of each include_role and import_role below a piece of YAML."""
    if isinstance(value, list):
        for item in value:
            yield from entry_points_used(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if INCLUDES.match(str(key)) and isinstance(item, dict) and "tasks_from" in item:
                yield item["name"].removeprefix("opskit.runbooks."), item["tasks_from"].removesuffix(".yml")
            yield from entry_points_used(item)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
class TestRole:
    def test_defaults_equal_options(self, role: Path) -> None:
        """defaults/main.yml is the whole public interface: the optional options of all entry points, none more."""
        defaults = read(role / "defaults/main.yml") or {}
        options = [item for spec in specs(role).values() for item in (spec.get("options") or {}).items()]
        required = {name for name, option in options if option.get("required")}
        assert sorted(defaults) == sorted({name for name, _option in options} - required)

    def test_default_values_equal_the_documented_ones(self, role: Path) -> None:
        """A default that is a template may be left to the description: ansible-core would render it in the specification too."""
        defaults = read(role / "defaults/main.yml") or {}
        for entry, spec in specs(role).items():
            for name, option in (spec.get("options") or {}).items():
                if name in defaults and ("default" in option or "{{" not in str(defaults[name])):
                    assert (entry, name, option.get("default")) == (entry, name, defaults[name])

    def test_entry_points_have_tasks(self, role: Path) -> None:
        assert [entry for entry in specs(role) if not (role / f"tasks/{entry}.yml").exists()] == []

    def test_options_are_described(self, role: Path) -> None:
        assert (role / "README.md").exists()
        for entry, spec in specs(role).items():
            assert spec.get("short_description"), entry


def test_included_entry_points_have_a_spec() -> None:
    files = [path for folder in ("roles", "playbooks", "examples") for path in (ROOT / folder).rglob("*.yml")]
    used = {(str(path.relative_to(ROOT)), *entry) for path in files for entry in entry_points_used(read(path))}
    ours = {entry for entry in used if (ROOT / "roles" / entry[1]).is_dir()}
    assert [entry for entry in sorted(ours) if entry[2] not in specs(ROOT / "roles" / entry[1])] == []


@pytest.mark.parametrize(
    ("variables", "locks"),
    [
        ({}, ["/var/backups/opskit/gateway/lock"]),
        ({"backup_store": "/mnt/a", "restore_store": "/mnt/b"}, ["/mnt/b/lock", "/mnt/a/lock"]),
        # A unit test of the store's locks has the same name.
        ({"backup_store": "/mnt/gateway", "backup_lock_dir": "/locks"}, ["/locks/gateway-0fe88c2eb50a60e3/writer.lock"]),
    ],
)
def test_lease_looks_at_the_locks_of_the_store(variables: dict[str, str], locks: list[str]) -> None:
    given = {"application_name": "gateway", "application_state_dir": "/state", **variables}
    files = [f"@{ROOT}/roles/lease/{name}/main.yml" for name in ("vars", "defaults")]
    argv = [
        "ansible",
        "localhost",
        "-i",
        "localhost,",
        "-c",
        "local",
        "-m",
        "ansible.builtin.debug",
        "-a",
        "var=lease_locks",
        "-e",
        json.dumps(given),
    ]
    done = subprocess.run([*argv, "-e", files[0], "-e", files[1]], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.partition("=>")[2])["lease_locks"] == ["/state/restore.lock", *locks]


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ("active inactive", 0),
        ("inactive activating", 0),
        ("deactivating", 0),
        ("inactive failed unknown", 1),
        ("", 126),
    ],
)
def test_units_at_work(tmp_path: Path, states: str, status: int) -> None:
    """The role backup asks systemd whether an application that it stops writes nothing."""
    (tmp_path / "systemctl").write_text("#!/bin/sh\n[ \"$*\" = 'is-active a b' ] && printf '%s\\n' $STATES; exit 3\n")
    (tmp_path / "systemctl").chmod(0o755)
    script = read(ROOT / "roles/backup/vars/main.yml")["__backup_units_at_work"]
    done = subprocess.run(["sh", "-c", script, "units", "a", "b"], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "STATES": states}, check=False)
    assert done.returncode == status
