# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# So that tests import what they share by the collection's name.
sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from ansible_collections.opskit.runbooks.tests.e2e.world import World

Make = Callable[..., World]


@pytest.fixture(scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Make worlds of one or more hosts, each with an application that is ready; all are stopped at the end."""
    made: list[World] = []

    def make(*hosts: str, **size: int) -> World:
        world = World(tmp_path_factory.mktemp("world"), *hosts)
        made.append(world)
        for application in world.applications.values():
            application.create(**size)
            application.start()
        return world

    yield make
    for world in made:
        world.close()
