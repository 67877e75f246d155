# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A warning that Python raises from the collection's own code fails the test.
    config.addinivalue_line("filterwarnings", r"error:::ansible_collections\.opskit\..*")
