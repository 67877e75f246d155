# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tools of Ansible do not compare: the lists that the collection keeps of its own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HEADER = (
    "# Copyright (c) 2026 opskit contributors\n"
    "# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)\n"
    "# SPDX-License-Identifier: GPL-3.0-or-later\n"
)
SOURCES = sorted(path for folder in ("plugins", "tests/unit") for path in (ROOT / folder).rglob("*.py") if path.stat().st_size)


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_action_group_lists_every_module() -> None:
    modules = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
    assert read("meta/runtime.yml")["action_groups"]["runbooks"] == modules


def test_artifact_leaves_out_only_what_exists() -> None:
    built_later = {".ansible", "build"}
    assert [name for name in read("galaxy.yml")["build_ignore"] if name not in built_later and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["ignore-*.txt", ".ansible-lint-ignore", ".config/ansible-lint-ignore.txt"])
def test_no_check_is_switched_off_by_a_file(name: str) -> None:
    assert [str(path) for path in ROOT.rglob(name) if "output" not in path.parts] == []


def test_ansible_lint_skips_nothing() -> None:
    assert {"skip_list", "warn_list", "exclude_paths", "mock_modules", "mock_roles"}.isdisjoint(read(".config/ansible-lint.yml"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_header(path: Path) -> None:
    assert HEADER in path.read_text()[: len(HEADER) + 40]
