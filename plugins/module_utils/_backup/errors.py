# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error of this room."""

from __future__ import annotations

from .._core.errors import OpskitError


class BackupError(OpskitError):
    """A backup set could not be made, read, verified, deleted or restored."""
