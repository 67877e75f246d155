# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the copy of a unit says, and what counts as a way out of it. That systemd then keeps it so, the tests of the lab see."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import isolation
from ansible_collections.opskit.runbooks.plugins.module_utils._application.isolation import (
    NOTIFY,
    Bind,
    Room,
    breaches,
    command_line,
    directories,
    is_in,
    listening,
    service_lines,
    unit_lines,
    word,
)
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError

UNIT = """
# /etc/systemd/system/ledger@.service
[Unit]
Description=ledger
Requires=postgresql.service
OnFailure=page-somebody.service
[Service]
Type=notify
User=ledger
EnvironmentFile=-/opt/ledger/.env
Environment=NAME=%n STEM=%N PREFIX=%p COLOUR=%i PERCENT=%%n
ExecStartPre=/usr/bin/install -d /opt/ledger/data/run
ExecStartPre=!+/usr/bin/rm -rf /srv/live
ExecStart=/usr/bin/python3 -m gateway \\
# a comment between
    --root /opt/ledger
ExecStop=/usr/bin/ledger stop --all
Restart=always
RestartSec=1
RuntimeDirectory=ledger
RemoveIPC=yes
PIDFile=/run/ledger.pid
StandardOutput=append:/opt/ledger/data/logs/out
BindPaths=/srv/shared
ReadWritePaths=/opt/ledger
ProtectProc=invisible
KillMode=none
[Install]
WantedBy=multi-user.target
# /etc/systemd/system/ledger@.service.d/more.conf
[Service]
Nice=5
ProtectSystem=no
"""


def test_a_copy_has_what_the_process_is_and_nothing_that_touches_the_live_one() -> None:
    lines = service_lines(UNIT, "ledger@blue.service", lambda path: "/drill" + path)
    assert lines == [
        "Type=notify",
        "User=ledger",
        "EnvironmentFile=-/drill/opt/ledger/.env",
        "Environment=NAME=ledger@blue.service STEM=ledger@blue PREFIX=ledger COLOUR=%i PERCENT=%%n",
        "ExecStartPre=/usr/bin/install -d /opt/ledger/data/run",
        "ExecStart=/usr/bin/python3 -m gateway  --root /opt/ledger",
        "BindReadOnlyPaths=/srv/shared",
        "ProtectProc=invisible",
        "Nice=5",
    ]


@pytest.mark.parametrize(
    "line", ["ExecStart=+/usr/bin/app", "ExecStart=-+/usr/bin/app", "RootImage=/srv/image", "BusName=org.app", "Sockets=app.socket"]
)
def test_what_nothing_cuts_off_is_refused(line: str) -> None:
    with pytest.raises(OpskitError, match="Describe the application by a unit without it"):
        service_lines(f"[Service]\nExecStart=/usr/bin/app\n{line}\n", "app.service", str)


def test_lines_of_a_unit() -> None:
    assert list(unit_lines("[A]\nx = 1\n;x=2\ny=a\\\n b\nno line\n[B]\nz=\n")) == [("A", "x", "1"), ("A", "y", "a b"), ("B", "z", "")]


def test_words_reach_the_process_as_they_are() -> None:
    assert word('a "b" \\ 100%') == '"a \\"b\\" \\\\ 100%%"'
    assert command_line(["/bin/echo", "$HOME", "a b"]) == '"/bin/echo" "$$HOME" "a b"'


def test_a_unit_is_cut_off_whatever_the_service_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "UNITS", str(tmp_path))
    monkeypatch.setattr(isolation, "systemctl", lambda *_words, **_options: "")
    room = Room("/var/tmp/opskit-drill/ledger one", 600)
    room.binds, room.hidden = [Bind("/drill/a b", "/opt/a b")], ["/srv/live.sock"]
    name = room.name("ledger@blue.service")
    room.write({name: ["PrivateNetwork=no", "ExecStart=/bin/true"], room.holder: ["ExecStart=/bin/true"]})
    assert name.startswith("opskit-drill-ledger_one-")
    found = list(unit_lines((tmp_path / name).read_text()))
    last = {key: value for _section, key, value in found}
    assert last["PrivateNetwork"] == last["PrivateTmp"] == last["PrivateIPC"] == last["NoNewPrivileges"] == "yes"
    assert (last["ProtectSystem"], last["Restart"], last["RuntimeMaxSec"]) == ("strict", "no", "600")
    assert last["TemporaryFileSystem"].split()[0] == "/run"
    assert ("Service", "BindPaths", '"/drill/a b":"/opt/a b"') in found
    assert ("Service", "InaccessiblePaths", '"-/srv/live.sock"') in found
    assert ("Unit", "JoinsNamespaceOf", room.holder) in found
    assert "JoinsNamespaceOf" not in (tmp_path / room.holder).read_text()
    assert Room("/var/tmp/opskit-drill/ledger_one", 600).prefix != room.prefix


NOTHING: Dict[str, Any] = {"interfaces": ["lo"], "reached": [], "abstract": [], "places": {}}


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({}, ""),
        ({"interfaces": ["eth0", "lo"]}, "it has the network interfaces eth0, lo"),
        ({"interfaces": []}, "it has the network interfaces "),
        ({"reached": ["192.0.2.1"]}, "it has a route to 192.0.2.1"),
        ({"abstract": ["@bus"]}, "it meets the socket @bus"),
        ({"places": {"/opt/data": [1, 20], "/run/db": None, "/srv/s": [1, 9]}}, ""),
        ({"places": {"/opt/data": [1, 2]}}, "/opt/data is not the copy there"),
        ({"places": {"/opt/data": None}}, "/opt/data is not the copy there"),
        ({"places": {"/run/db": [1, 3]}}, "it meets the live /run/db"),
        ({"places": {NOTIFY: [1, 4]}}, ""),
    ],
)
def test_breaches(seen: Dict[str, Any], says: str) -> None:
    live = {"/opt/data": [1, 2], "/run/db": [1, 3], "/srv/s": [1, 5], NOTIFY: [1, 4]}
    assert breaches({**NOTHING, **seen}, live, {"/opt/data": [1, 20]}) == says


def look(*prefix: str, **what: Any) -> Dict[str, Any]:
    given = {"addresses": [], "paths": [], "stay": False, **what}
    argv = [*prefix, sys.executable, "-I", "-S", "-c", isolation._LOOK]
    return dict(json.loads(subprocess.run(argv, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True).stdout))


def test_the_look_sees_what_is_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(tmp_path / "s"))
        abstract.bind(f"\0opskit-test-{os.getpid()}")
        named.listen(1)
        abstract.listen(1)
        assert str(tmp_path / "s") in listening()
        seen = look(addresses=["127.0.0.1", "256.0.0.1"], paths=[str(tmp_path / "s"), str(tmp_path / "none")])
    assert "lo" in seen["interfaces"]
    assert seen["reached"] == ["127.0.0.1"]
    assert f"@opskit-test-{os.getpid()}" in seen["abstract"]
    state = os.stat(tmp_path / "s")
    assert seen["places"] == {str(tmp_path / "s"): [state.st_dev, state.st_ino], str(tmp_path / "none"): None}


def namespaces() -> List[str]:
    """What makes a network namespace here; empty where that is not allowed."""
    for argv in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        if subprocess.run([*argv, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return argv
    return []


@pytest.mark.skipif(not namespaces(), reason="no network namespaces here")
def test_the_look_sees_a_network_of_its_own() -> None:
    seen = look(*namespaces(), addresses=list(isolation._OUTSIDE), paths=[])
    assert breaches(seen, {}, {}) == ""


@pytest.mark.skipif(namespaces()[:2] != ["unshare", "--net"], reason="only root enters a network")
def test_a_thread_in_the_network_and_this_one_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        holder.stdout.readline()
        monkeypatch.setattr(isolation, "show", lambda *_words: {"MainPID": str(holder.pid)})
        room, outside = Room("/nowhere", 60), os.readlink("/proc/thread-self/ns/net")
        assert room.in_network(lambda: sorted(name for _number, name in socket.if_nameindex())) == ["lo"]
        assert os.readlink("/proc/thread-self/ns/net") == outside
        with pytest.raises(ZeroDivisionError):
            room.in_network(lambda: 1 // 0)
    finally:
        holder.kill()
        holder.communicate()


def test_folders_that_systemd_makes() -> None:
    seen = {"RuntimeDirectory": "app app/b:link", "StateDirectory": "", "LogsDirectory": "app"}
    assert directories(seen) == {
        "RuntimeDirectory/app": "/run/app",
        "RuntimeDirectory/app/b": "/run/app/b",
        "LogsDirectory/app": "/var/log/app",
    }


def test_paths_in_folders() -> None:
    assert is_in("/run", ["/run"])
    assert is_in("/run/a", ["/srv", "/run/"])
    assert not is_in("/running", ["/run"])
