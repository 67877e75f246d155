# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with a PostgreSQL database."""

from __future__ import annotations

from .._core.errors import OpskitError


class PostgresError(OpskitError):
    """A PostgreSQL database or a dump of one can't be read, written or relied on."""
