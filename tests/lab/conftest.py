# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# So that tests import what they share by the collection's name.
sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from ansible_collections.opskit.runbooks.tests.lab.world import World


@pytest.fixture(scope="session")
def inventory() -> Path:
    """The inventory of the lab, whose hosts are up."""
    return Path(os.environ["OPSKIT_LAB_INVENTORY"])


@pytest.fixture(scope="session")
def world(inventory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two applications on each host, with a little content; removed at the end."""
    made = World(tmp_path_factory.mktemp("lab"), inventory)
    try:
        made.prepare()
        yield made
    finally:
        made.close()
