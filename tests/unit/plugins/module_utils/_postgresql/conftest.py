# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import tempfile
from typing import Iterator

import pytest

from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import Cluster


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    # Each process of a parallel run has its own; one is started in less than a second.
    with postgres.server() as server, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Cluster(server, folder)


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The server, without the databases and roles of the test before."""
    yield running
    running.empty()
