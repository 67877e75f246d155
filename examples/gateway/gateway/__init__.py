# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small LLM gateway: the application that the runbooks of this collection are shown and tested on."""

from __future__ import annotations

__version__ = "1.0.0"


class GatewayError(Exception):
    """Something an operator can cause or repair: one line that says what, where and what to do."""
