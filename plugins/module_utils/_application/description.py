# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say what a database is, the same in every module that takes a description."""

from __future__ import annotations

from typing import Any, Dict

LOGIN = {"user": "str", "passfile": "path", "service": "str", "os_user": "str"}
"""What a login consists of beside host and port; with ``admin_`` before it, that of the admin."""


def database_spec() -> Dict[str, Any]:
    """Return the specification of the option ``databases``."""
    return {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "engine": {"type": "str", "choices": ["sqlite", "postgresql"], "required": True},
            "path": {"type": "path"},
            "database": {"type": "str"},
            "host": {"type": "str"},
            "port": {"type": "int"},
            **{prefix + name: {"type": kind} for prefix in ("", "admin_") for name, kind in LOGIN.items()},
            "schema_query": {"type": "str"},
            "url_variable": {"type": "str"},
        },
    }
