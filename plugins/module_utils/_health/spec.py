# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of checks, the same wherever checks are given."""

from __future__ import annotations

from typing import Any, Dict

from .jsonpath import OPERATORS

CHECK: Dict[str, Any] = {
    "id": {"type": "str", "required": True},
    "type": {"type": "str", "required": True, "choices": ["http", "tcp", "systemd", "command"]},
    "required": {"type": "bool", "default": True},
    "depends_on": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "float", "default": 5.0},
    "success_threshold": {"type": "int"},
    "latency_warn_ms": {"type": "float"},
    "latency_fail_ms": {"type": "float"},
    "url": {"type": "str"},
    "method": {"type": "str", "choices": ["GET", "HEAD", "OPTIONS"], "default": "GET"},
    "headers": {"type": "dict"},
    # A path, not a secret.
    "token_file": {"type": "path", "no_log": False},
    "host_header": {"type": "str"},
    "server_name": {"type": "str"},
    "connect_to": {"type": "str"},
    "status_code": {"type": "list", "elements": "int", "default": [200]},
    "body_regex": {"type": "str"},
    "json": {
        "type": "list",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "op": {"type": "str", "choices": list(OPERATORS), "default": "eq"},
            "value": {"type": "raw"},
        },
    },
    "max_bytes": {"type": "int", "default": 1048576},
    "max_redirects": {"type": "int", "default": 0},
    "validate_certs": {"type": "bool", "default": True},
    "ca_file": {"type": "path"},
    "host": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int"},
    "send": {"type": "str"},
    "expect_regex": {"type": "str"},
    "unit": {"type": "str"},
    "min_uptime": {"type": "float", "default": 0.0},
    "argv": {"type": "list", "elements": "str"},
    "check_safe": {"type": "bool", "default": False},
}

ARGUMENTS: Dict[str, Any] = {
    "checks": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": CHECK,
        "required_if": [
            ("type", "http", ["url"]),
            ("type", "tcp", ["port"]),
            ("type", "systemd", ["unit"]),
            ("type", "command", ["argv"]),
        ],
    },
    "mode": {"type": "str", "choices": ["once", "until"], "default": "once"},
    "interval": {"type": "float", "default": 1.0},
    "deadline": {"type": "float", "default": 60.0},
    "concurrency": {"type": "int", "default": 32},
    "quorum": {"type": "str", "default": "all"},
    "fail_on": {"type": "str", "choices": ["fail", "warn", "never"], "default": "fail"},
}
