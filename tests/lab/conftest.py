# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# So that tests import what they share by the collection's name.
sys.path.insert(0, str(Path(__file__).resolve().parents[5]))


@pytest.fixture(scope="session")
def inventory() -> Path:
    """The inventory of the lab, whose hosts are up."""
    return Path(os.environ["OPSKIT_LAB_INVENTORY"])
