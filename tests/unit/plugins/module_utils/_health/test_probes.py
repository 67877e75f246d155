# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every probe against the real thing, right and wrong."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._health import lab

TOKEN = "s3cret-token-of-the-test"


def outcome(row: Dict[str, Any]) -> str:
    return row["reason"] or row["status"]


def test_http_passes_and_tells_what_it_saw() -> None:
    with lab.http(lab.reply(b'{"status": "ok"}')) as server:
        row = lab.look(type="http", url=server.url("/readyz?full=1"), json=[{"path": "$.status", "value": "ok"}], body_regex="ok")
    assert (row["status"], row["reason"], row["message"]) == ("pass", "", "")
    assert row["address"] == f"127.0.0.1:{server.port}"
    assert row["observed"] == {"status_code": 200}
    assert list(row["phases_ms"]) == ["dns", "connect", "ttfb", "transfer", "total"]
    assert row["latency_ms"]["n"] == 1
    assert row["latency_ms"]["max"] == row["phases_ms"]["total"]
    head = server.requests[0].decode().split("\r\n")
    assert head[0] == "GET /readyz?full=1 HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}" in head


def test_wrong_status_shows_the_answer() -> None:
    with lab.http(lab.reply(b"db is \x1b[31mdown\xff", "503 Service Unavailable")) as server:
        row = lab.look(type="http", url=server.url())
    assert (row["status"], row["reason"]) == ("fail", "http_status")
    assert row["message"] == "status 503, expected 200"
    assert row["observed"] == {"status_code": 503, "body": "db is \ufffd[31mdown\ufffd"}
    assert row["expected"] == {"status_code": [200]}


def test_body_mismatch() -> None:
    with lab.http(lab.reply(b"starting")) as server:
        row = lab.look(type="http", url=server.url(), body_regex="^ready$")
    assert outcome(row) == "body_mismatch"
    assert row["observed"]["body"] == "starting"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"status": "starting"}', '$.status is "starting", expected eq "ok"'),
        (b"{}", "$.status is not there"),
        (b"<html>", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xfe", "the body is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_json_mismatch(body: bytes, message: str) -> None:
    with lab.http(lab.reply(body)) as server:
        row = lab.look(type="http", url=server.url(), json=[{"path": "$.status", "value": "ok"}])
    assert (outcome(row), row["message"]) == ("json_mismatch", message)


def test_deeply_nested_json_breaks_nothing() -> None:
    with lab.http(lab.reply(b"[" * 200000)) as server:
        row = lab.look(type="http", url=server.url(), json=[{"path": "$.status", "value": "ok"}])
    assert outcome(row) == "json_mismatch"


def test_no_more_than_max_bytes_is_read() -> None:
    with lab.http(lab.reply(b"x" * 5000 + b"needle")) as server:
        assert lab.look(type="http", url=server.url(), body_regex="needle")["status"] == "pass"
        row = lab.look(type="http", url=server.url(), body_regex="needle", max_bytes=5000)
    assert row["message"] == "the body does not match body_regex in the first 5000 bytes"


def test_redirect_is_an_answer_of_its_own() -> None:
    with lab.http(lab.reply(b"", "302 Found", "Location: /login?ticket=abc\r\n")) as server:
        row = lab.look(type="http", url=server.url())
        assert lab.look(type="http", url=server.url(), status_code=[302])["status"] == "pass"
    assert outcome(row) == "redirect"
    assert row["observed"] == {"status_code": 302, "location": "/login"}


def test_redirects_are_followed_when_asked_and_the_token_stays_at_home(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    with lab.http(lab.reply(b"there")) as other:
        moved = lab.reply(b"", "307 Temporary Redirect", f"Location: {other.url('/x')}\r\n")
        home = lab.reply(b"", "302 Found", "Location: next\r\n")
        with lab.http(home, moved) as first:
            row = lab.look(type="http", url=first.url("/a/b"), max_redirects=2, token_file=str(secret), body_regex="there")
    assert row["status"] == "pass"
    assert first.requests[1].startswith(b"GET /a/next ")
    assert all(f"Authorization: Bearer {TOKEN}".encode() in request for request in first.requests)
    assert b"Authorization" not in other.requests[0]


def test_endless_redirects_end() -> None:
    with lab.http(lab.reply(b"", "302 Found", "Location: /\r\n")) as server:
        assert outcome(lab.look(type="http", url=server.url(), max_redirects=3)) == "redirect"
    assert server.connections == 4


def test_redirect_to_nowhere() -> None:
    with lab.http(lab.reply(b"", "302 Found", "Location: ftp://127.0.0.1/\r\n")) as server:
        assert outcome(lab.look(type="http", url=server.url(), max_redirects=3)) == "redirect"


def test_connect_to_and_headers() -> None:
    with lab.http(lab.reply(b"")) as server:
        row = lab.look(
            type="http", url="http://app.example.com/", connect_to=f"127.0.0.1:{server.port}", headers={"X-Probe": "1", "user-agent": "me"}
        )
        lab.look(type="http", url=server.url(), host_header="other.example.com")
    assert row["status"] == "pass"
    head = server.requests[0].decode().split("\r\n")
    assert {"Host: app.example.com", "X-Probe: 1", "user-agent: me"} <= set(head)
    assert sum(line.lower().startswith("user-agent") for line in head) == 1
    assert "Host: other.example.com" in server.requests[1].decode().split("\r\n")


def test_a_token_that_comes_back_is_not_seen(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    body = f'{{"you": "{TOKEN}", "said": "\\u0073{TOKEN[1:]}"}}'.encode()
    conditions = [{"path": "$.said", "value": "x"}, {"path": "$.you", "value": "x"}]
    plain = f"who is {TOKEN}?".encode()
    with lab.http(lab.reply(body), lab.reply(plain, "401 Unauthorized"), lab.reply(b"", "302 Found", f"Location: /{TOKEN}\r\n")) as server:
        check = {"type": "http", "url": server.url(), "token_file": str(secret), "json": conditions}
        results = [lab.run(check, fail_on="never") for _number in range(3)]
    assert [result["first_failure"]["reason"] for result in results] == ["json_mismatch", "http_status", "redirect"]
    assert f"Bearer {TOKEN}".encode() in server.requests[0]
    for result in results:
        assert TOKEN not in repr(result)
        assert TOKEN[1:] not in repr(result)
        assert "********" in repr(result)


def test_secrets_in_a_query_are_not_seen() -> None:
    with lab.http(lab.reply(b"")) as server:
        row = lab.look(type="http", url=server.url("/x?api_key=hunter2hunter2"))
    assert b"hunter2hunter2" in server.requests[0]
    assert "hunter2" not in repr(row)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (lab.silent, "http_timeout"),
        (lab.drip(lab.reply(b"x" * 100), 0.05), "http_timeout"),
        (lab.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.001), "http_timeout"),
        (lab.reset, "connect_reset"),
        (lambda connection, _number: lab.read_request(connection), "connect_reset"),
        (lab.answers(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "http_protocol"),
        (lab.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), "http_protocol"),
        (lab.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "http_protocol"),
        (lab.answers(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"), "http_protocol"),
    ],
)
def test_bad_servers(handler: lab.Handler, reason: str) -> None:
    begun = time.monotonic()
    with lab.Server(handler) as server:
        row = lab.look(type="http", url=server.url(), timeout=0.5)
    assert outcome(row) == reason
    assert row["status"] == "fail"
    # A drip of 7 s and more must not prolong the half second.
    assert time.monotonic() - begun < 2


def test_head_looks_at_no_body() -> None:
    with lab.http(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n") as server:
        assert lab.look(type="http", url=server.url(), method="HEAD")["status"] == "pass"


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_nobody_listens(kind: str) -> None:
    port = lab.free_port()
    options = {"url": f"http://127.0.0.1:{port}/"} if kind == "http" else {"port": port}
    row = lab.look(type=kind, **options)
    assert outcome(row) == "connect_refused"
    assert row["address"] == f"127.0.0.1:{port}"


def test_full_backlog_is_a_connect_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _number in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            row = lab.look(type="tcp", port=port, timeout=0.4)
        finally:
            for sock in waiting:
                sock.close()
    assert outcome(row) == "connect_timeout"
    assert "connect" in row["message"]


def test_unreachable_network() -> None:
    # RFC 5737 addresses have a route where there is a default route; a broadcast address refuses TCP everywhere.
    assert outcome(lab.look(type="tcp", host="255.255.255.255", port=9)) == "no_route"


def test_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def broken(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert outcome(lab.look(type="tcp", host="no-such-host.invalid", port=80)) == "dns_nxdomain"
    monkeypatch.setattr(socket, "getaddrinfo", broken)
    assert outcome(lab.look(type="tcp", host="no-such-host.invalid", port=80)) == "dns_servfail"


def test_second_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(_host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.2", *args, **options) + real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with lab.says(b"hello") as server:
        row = lab.look(type="tcp", host="two.example.com", port=server.port)
    assert (row["status"], row["address"]) == ("pass", f"127.0.0.1:{server.port}")


def test_tcp_conversation() -> None:
    def echo(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"+" + connection.recv(100).upper())

    with lab.Server(echo) as server:
        row = lab.look(type="tcp", port=server.port, send="ping\r\n", expect_regex="^\\+PING")
    assert (row["status"], row["observed"]) == ("pass", {"answer": "+PING"})


def test_accepting_alone_is_no_pass_when_an_answer_is_expected() -> None:
    with lab.Server(lab.silent) as server:
        assert lab.look(type="tcp", port=server.port)["status"] == "pass"
        assert outcome(lab.look(type="tcp", port=server.port, expect_regex="^220 ", timeout=0.3)) == "tcp_timeout"


def test_wrong_or_no_word() -> None:
    with lab.says(b"550 go away \xff\r\n") as server:
        row = lab.look(type="tcp", port=server.port, expect_regex="^220 ")
    assert (outcome(row), row["observed"]) == ("body_mismatch", {"answer": "550 go away \ufffd"})
    with lab.Server(lambda _connection, _number: None) as server:
        assert outcome(lab.look(type="tcp", port=server.port, expect_regex="^220 ")) == "connect_reset"


def test_more_than_is_read_without_the_expected_word() -> None:
    with lab.says(b"x" * 300000) as server:
        row = lab.look(type="tcp", port=server.port, expect_regex="needle")
    assert outcome(row) == "body_mismatch"
    assert len(row["observed"]["answer"]) == 203


@pytest.mark.parametrize(("code", "status"), [(0, "pass"), (1, "warn"), (2, "fail"), (3, "unknown"), (4, "fail"), (127, "fail")])
def test_command_exit_codes(code: int, status: str) -> None:
    row = lab.look(type="command", argv=[sys.executable, "-c", f"print('LOAD | l=1;2'); raise SystemExit({code})"])
    assert row["status"] == status
    assert row["reason"] == ("" if code == 0 else "command_exit")
    assert row["observed"] == {"exit_code": code, "output": "LOAD", "perfdata": {"l": {"value": 1.0, "unit": "", "warn": "2"}}}


def test_command_that_says_it_on_stderr() -> None:
    row = lab.look(type="command", argv=[sys.executable, "-c", "import sys; sys.exit('no password=hunter2 \\x1b here')"])
    assert row["message"] == "exit code 1: no password=******** \ufffd here"


def test_command_killed_by_a_signal() -> None:
    row = lab.look(type="command", argv=[sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert (outcome(row), row["observed"]["exit_code"]) == ("command_exit", -9)


def test_command_has_no_shell() -> None:
    row = lab.look(type="command", argv=["echo", "$HOME;", "`id`"])
    assert row["observed"]["output"] == "$HOME; `id`"


def test_command_over_its_time_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    row = lab.look(type="command", argv=[sys.executable, "-c", script], timeout=1.0)
    assert outcome(row) == "command_timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_command_that_is_not_there() -> None:
    assert outcome(lab.look(type="command", argv=["/no/such/check"])) == "command_not_found"


def test_check_mode_runs_only_safe_commands(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    command = {"type": "command", "argv": ["touch", str(touched)]}
    result = lab.run(command, {"type": "tcp", "port": 1, "required": False}, check_mode=True)
    assert outcome(result["checks"][0]) == "check_mode"
    assert result["status"] == "warn"  # of the port alone
    assert not touched.exists()
    assert lab.run({**command, "check_safe": True}, check_mode=True)["status"] == "pass"
    assert touched.exists()


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")
def test_no_systemd_is_said_and_not_waited_for() -> None:
    begun = time.monotonic()
    result = lab.run({"type": "systemd", "unit": "nginx.service"}, mode="until", deadline=30, fail_on="never")
    assert (result["status"], result["first_failure"]["reason"]) == ("unknown", "systemd_unavailable")
    assert time.monotonic() - begun < 5
