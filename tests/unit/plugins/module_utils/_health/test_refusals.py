# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that can't be meant is refused before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._health.runner import Unhealthy
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._health import lab

TCP: Dict[str, Any] = {"type": "tcp", "port": 9}
HTTP: Dict[str, Any] = {"type": "http", "url": "http://127.0.0.1:9/"}


@pytest.mark.parametrize(
    ("checks", "params", "message"),
    [
        ([], {}, "nothing to check"),
        ([TCP, TCP], {}, "two checks have this id"),
        ([{**TCP, "id": "a b"}], {}, "an id has letters"),
        ([{**TCP, "depends_on": ["db"]}], {}, "depends_on names db"),
        ([{**TCP, "id": "a", "depends_on": ["b"]}, {**TCP, "id": "b", "depends_on": ["a"]}, {**TCP, "id": "c"}], {}, "^a, b: .*circle"),
        ([{**TCP, "depends_on": ["tcp"]}], {}, "circle"),
        ([{**TCP, "timeout": 0}], {}, "timeout"),
        ([{**TCP, "success_threshold": 0}], {}, "success_threshold"),
        ([{**TCP, "latency_warn_ms": 200, "latency_fail_ms": 100}], {}, "latency limits"),
        ([{**TCP, "latency_warn_ms": -1}], {}, "latency limits"),
        ([{**TCP, "port": 0}], {}, "0 is not a port"),
        ([{**TCP, "port": 65536}], {}, "65536 is not a port"),
        ([{**TCP, "host": "a..b"}], {}, "no host name"),
        ([{**TCP, "host": "a b"}], {}, "no host name"),
        ([{**TCP, "url": "http://127.0.0.1/"}], {}, "url means nothing to a check of type tcp"),
        ([{**TCP, "send": "x"}], {}, "send without expect_regex"),
        ([{**TCP, "expect_regex": "("}], {}, "no regular expression"),
        ([{**HTTP, "body_regex": "["}], {}, "no regular expression"),
        ([{**HTTP, "json": [{"path": "status"}]}], {}, "no path to one JSON value"),
        ([{**HTTP, "json": [{"path": "$.n", "op": "lt"}]}], {}, "lt needs a value"),
        ([{**HTTP, "url": "ftp://127.0.0.1/"}], {}, "no http or https URL"),
        ([{**HTTP, "url": "127.0.0.1:80"}], {}, "no http or https URL"),
        ([{**HTTP, "url": "http:///path"}], {}, "no http or https URL"),
        ([{**HTTP, "url": "http://127.0.0.1:99999/"}], {}, "no URL"),
        ([{**HTTP, "url": "http://127.0.0.1:0/"}], {}, "0 is not a port"),
        ([{**HTTP, "url": "http://[::1/"}], {}, "no URL"),
        ([{**HTTP, "url": "http://127.0.0.1/a b"}], {}, "Percent-encode"),
        ([{**HTTP, "url": "http://127.0.0.1/\r\nX: y"}], {}, "Percent-encode"),
        ([{**HTTP, "connect_to": "127.0.0.1"}], {}, "not HOST:PORT"),
        ([{**HTTP, "headers": {"Authorization": "Bearer x"}}], {}, "holds a secret"),
        ([{**HTTP, "headers": {"cookie": "x"}}], {}, "holds a secret"),
        ([{**HTTP, "headers": {"Host": "x"}}], {}, "set by the probe"),
        ([{**HTTP, "headers": {"X-A": "1\r\nX-B: 2"}}], {}, "characters that a header can't have"),
        ([{**HTTP, "headers": {"X A": "1"}}], {}, "characters that a header can't have"),
        ([{**HTTP, "host_header": "a\nb"}], {}, "characters that a header can't have"),
        ([{**HTTP, "status_code": []}], {}, "status_code"),
        ([{**HTTP, "status_code": [20]}], {}, "status_code"),
        ([{**HTTP, "max_bytes": 1}], {}, "max_bytes"),
        ([{**HTTP, "max_redirects": -1}], {}, "max_redirects"),
        ([{**HTTP, "method": "HEAD", "body_regex": "x"}], {}, "HEAD"),
        ([{**HTTP, "ca_file": "/no/such/file"}], {}, "certificates can't be read"),
        ([{**HTTP, "token_file": "/no/such/file"}], {}, "token can't be read"),
        ([{"type": "command", "argv": []}], {}, "argv does not name a program"),
        ([{"type": "systemd", "unit": "x.service", "min_uptime": -1}], {}, "min_uptime"),
        ([TCP], {"interval": 0}, "interval"),
        ([TCP], {"deadline": -1}, "deadline"),
        ([TCP], {"concurrency": 0}, "concurrency"),
        ([TCP], {"quorum": "most"}, "quorum"),
        ([TCP], {"quorum": "2"}, "quorum"),
        ([TCP], {"quorum": "0"}, "quorum"),
        ([{**TCP, "required": False}], {"quorum": "any"}, "quorum"),
    ],
)
def test_refused(checks: List[Dict[str, Any]], params: Dict[str, Any], message: str) -> None:
    with pytest.raises(OpskitError, match=message) as caught:
        lab.run(*checks, **params)
    assert not isinstance(caught.value, Unhealthy)
    assert caught.value.todo


def test_a_password_in_a_url_is_refused_without_being_repeated() -> None:
    with pytest.raises(OpskitError, match="use token_file") as caught:
        lab.run({"type": "http", "url": "http://admin:hunter2@127.0.0.1/"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "short", "two words here", "line-one-1\nline-two-2", "Bearer abcdefghijkl", "gehe\u00efmes-wort"])
def test_a_token_that_is_none_is_refused_without_being_repeated(content: str, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(content, encoding="utf-8")
    with pytest.raises(OpskitError, match="no bearer token") as caught:
        lab.run({**HTTP, "token_file": str(secret)})
    assert not content or content not in str(caught.value)
    with pytest.raises(OpskitError, match=r"can't be read|regular file"):
        lab.run({**HTTP, "token_file": str(tmp_path)})


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing\n")
    with pytest.raises(OpskitError, match="certificates can't be read"):
        lab.run({**HTTP, "ca_file": str(empty)})
