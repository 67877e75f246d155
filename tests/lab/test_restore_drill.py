# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore drills on hosts: they succeed, meet nothing live, find a flipped byte, and leave nothing, whenever they are killed."""

from __future__ import annotations

import io
import json
import random
import shlex
import subprocess
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import wait_until
from ansible_collections.opskit.runbooks.tests.lab.world import SCRATCH, SMALL, SOAK, Application, Host, Look, Variables, World, parallel

HERE = Path(__file__).resolve().parent
FOLDER = "/var/tmp/opskit-drill"
SPY, SPY_PORT = "/opt/spy", 8199
LISTENERS = (f"{SPY}/live.sock", "@opskit-lab-spy")
TRIES = 6
MIB = 1 << 20

# Units, files of units, processes, mounts in whichever namespace, databases and folders of drills.
LEFT = f"""
systemctl list-units --all --plain --no-legend 'opskit-drill-*'
ls /run/systemd/system | grep opskit-drill
grep -l opskit-drill /proc/[0-9]*/cgroup
grep -l opskit-drill /proc/[0-9]*/mountinfo
ls {FOLDER} 2>/dev/null
for one in /proc/[0-9]*; do
    case $(readlink $one/cwd) in {FOLDER}*) echo $one ;; esac
done
pgrep -f 'postgres -D /run/opskit-drill'
true
"""

LISTEN = """
import os, signal, socket, sys
kept = []
for path in sys.argv[1:]:
    if not path.startswith("@") and os.path.exists(path):
        os.unlink(path)
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(chr(0) + path[1:] if path.startswith("@") else path)
    kept[-1].listen(8)
signal.pause()
"""

FLIP = """
import sys
with open(sys.argv[1], "r+b") as stream:
    stream.seek(int(sys.argv[2]))
    byte = stream.read(1)
    stream.seek(int(sys.argv[2]))
    stream.write(bytes([byte[0] ^ 0x10]))
"""


@pytest.fixture(scope="module")
def saved(world: World) -> World:
    """Each application has a set of what it is now."""
    world.play("backup", list(world.applications))
    return world


def left(host: Host) -> str:
    return host.sh(LEFT).strip()


def proof(one: Application, set_id: str, store: str = "") -> dict[str, Any]:
    """The newest proof of a set."""
    script = f"cd {store or one.store}/proofs/{set_id} && cat $(ls | grep json | sort | tail -n 1)"
    return dict(json.loads(one.host.sh(script)))


def sessions(host: Host) -> str:
    """How often somebody has logged in to the live database."""
    return host.sql("SELECT sessions FROM pg_stat_database WHERE datname = 'ledger'")


def state(one: Application) -> Look:
    look = one.look()
    return {what: look[what] for what in ("files", "rows", "databases", "inodes", "password", "beside", "sets", "half", "unit")}


def test_every_application_is_drilled_and_what_is_live_is_not_met(saved: World) -> None:
    world = saved
    before = {name: state(one) for name, one in world.applications.items()}
    logins = {host.name: sessions(host) for host in world.hosts.values()}
    run = world.play("backup_drill", list(world.applications))
    assert {host.name: sessions(host) for host in world.hosts.values()} == logins
    for name, one in world.applications.items():
        entry = run.stats["opskit_backup_drill"][name]
        assert entry["set"] == before[name]["sets"][-1]
        assert 0 < entry["recovery_time_s"] < 60
        recorded = proof(one, entry["set"])
        assert (recorded["level"], recorded["ok"]) == ("drill", True)
        assert recorded["recovery_time_s"] == entry["recovery_time_s"]
        assert recorded["recovery_point"] == entry["recovery_point"]
        assert set(entry["phases"]) >= ({"load_s", "compare_s"} if one.database else {"stage_s", "start_s"})
        journal = one.look()["journal"][-1]
        assert (journal["runbook"], journal["outcome"]) == ("backup_drill", "ok")
        assert journal["details"]["recovery_point"] == entry["recovery_point"]
    assert {name: state(one) for name, one in world.applications.items()} == before
    assert [left(host) for host in world.hosts.values()] == [""] * len(world.hosts)


def test_a_rehearsal_starts_nothing(saved: World) -> None:
    run = saved.play("backup_drill", list(saved.applications), "--check", "--diff")
    for name, one in saved.applications.items():
        steps = [step["step"] for step in run.one("Module | Drill", name)["plan"]]
        assert steps[-2:] == ["start", "record proof"]
        assert ("load" in steps) == bool(one.database)
        assert run.stats["opskit_backup_drill"][name]["recovery_time_s"] is None
    assert [left(host) for host in saved.hosts.values()] == [""] * len(saved.hosts)


def spy(world: World, host: Host, peer: Host) -> Variables:
    """A service that is root and tries everything; its check passes only if it gets nowhere and reads what was saved."""
    what = {
        "port": SPY_PORT,
        "tcp": [[peer.address, 22], [host.address, 22], ["127.0.0.1", 5432]],
        "unix": ["/run/dbus/system_bus_socket", "/run/systemd/private", "/var/run/postgresql/.s.PGSQL.5432", *LISTENERS],
        "write": ["/etc/opskit-lab-spy", "/root/opskit-lab-spy", f"{SPY}/outside", "/run/opskit-lab-spy-not-there/x", f"{SCRATCH}/spy"],
        "read": f"{SPY}/data/word",
    }
    unit = f"""
[Unit]
Description=spy
Wants=opskit-lab-never.service
[Service]
Environment=MINE=1
RuntimeDirectory=opskit-lab-spy
ExecStartPre=+/bin/touch /run/opskit-lab-spy-began
ExecStart=/usr/bin/python3 {SPY}/spy.py {shlex.quote(json.dumps(what)).replace("%", "%%")}
ReadWritePaths=/
"""
    host.sh(f"mkdir -p {SPY}/data && echo saved >{SPY}/data/word")
    host.run("sh", "-c", f"cat >{SPY}/spy.py", text=(HERE / "spy.py").read_text())
    host.run("sh", "-c", "cat >/etc/systemd/system/spy.service && systemctl daemon-reload", text=unit)
    return {
        **world.connections[host.name],
        "application_name": "spy",
        "application_databases": [],
        "application_environment_file": "",
        "application_config_dir": "",
        "application_projects_dir": "",
        "application_units": ["spy.service"],
        "application_smoke_checks": [
            {
                "id": "spy",
                "type": "http",
                "url": f"http://127.0.0.1:{SPY_PORT}/",
                "timeout": 30,
                "body_regex": '"reached": \\[\\], "word": "saved"',
            },
            {"id": "word", "type": "command", "argv": ["grep", "-qx", "saved", f"{SPY}/data/word"]},
        ],
        "application_start_timeout": 20,
        "backup_store": f"{SCRATCH}/spy-store",
    }


def test_a_spy_that_is_root_reaches_nothing(saved: World) -> None:
    """The same program that reaches everything when it runs as the live one."""
    world = saved
    first, *_others, last = world.hosts.values()
    pairs = [(first, last), (last, first)]
    more = {f"spy-{host.name}": spy(world, host, peer) for host, peer in pairs}
    hosts = list(world.hosts.values())
    listening = [subprocess.Popen(host.argv("python3", "-c", LISTEN, *LISTENERS), stdin=subprocess.DEVNULL) for host in hosts]
    try:
        world.play("backup", list(more), more=more)
        for host in hosts:
            host.sh(f"echo live >{SPY}/data/word; systemctl start spy.service; rm -f /run/opskit-lab-spy-began")
            wait_until(partial(answers, host), "the spy answers", 20)
            seen = json.loads(ask(host))
            assert seen["word"] == "live"
            assert {"127.0.0.1:5432", "/run/dbus/system_bus_socket", "/run/systemd/private", "/etc/opskit-lab-spy", f"{SPY}/outside"} < set(
                seen["reached"]
            )
            assert set(LISTENERS) < set(seen["reached"])
            assert len(seen["reached"]) == 3 + 5 + 4
            host.sh(f"truncate --size 0 /etc/opskit-lab-spy /root/opskit-lab-spy {SPY}/outside {SCRATCH}/spy; rm {SPY}/data/word.new")
        run = world.play("backup_drill", list(more), more=more)
        assert all(run.stats["opskit_backup_drill"][name]["recovery_time_s"] for name in more)
        for host in hosts:
            # The live one still runs, with the folder that systemd made for it, and nothing was written for it.
            assert host.run("systemctl", "is-active", "spy.service").strip() == "active"
            assert host.sh("ls -d /run/opskit-lab-spy").strip()
            assert (
                host.sh(f"cat /etc/opskit-lab-spy /root/opskit-lab-spy {SPY}/outside {SCRATCH}/spy; cat {SPY}/data/word").strip() == "live"
            )
            assert host.sh(f"ls /run/opskit-lab-spy-began {SPY}/data/word.new 2>/dev/null; true").strip() == ""
            assert left(host) == ""
        # With a hole in each of the walls, it is seen and refused before anything is started.
        holes = {"PrivateNetwork=no\\nPrivateIPC=no": "it has the network interfaces", "TemporaryFileSystem=": "it meets the live /run/"}
        folder = "/etc/systemd/system/opskit-drill-.service.d"
        for host, line in zip(hosts, holes, strict=False):
            host.sh(f"mkdir -p {folder}; printf '[Service]\\n{line}\\n' >{folder}/hole.conf")
        try:
            run = world.play("backup_drill", list(more), more=more, fails=True)
        finally:
            for host in hosts:
                host.sh(f"rm -rf {folder}; systemctl daemon-reload")
        for host, says in zip(hosts, holes.values(), strict=False):
            assert says in run.stats["opskit_backup_drill"][f"spy-{host.name}"]["message"]
            assert left(host) == ""
    finally:
        for host, process in zip(hosts, listening, strict=True):
            host.sh(
                f"pkill -f {LISTENERS[1]}; systemctl stop spy.service; rm -rf {SPY} /etc/systemd/system/spy.service /etc/opskit-lab-spy /root/opskit-lab-spy"
            )
            host.run("systemctl", "daemon-reload")
            process.wait(30)


def answers(host: Host) -> bool:
    return "reached" in ask(host)


def ask(host: Host) -> str:
    return host.run(
        "python3", "-c", f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{SPY_PORT}/').read().decode())", check=False
    )


@dataclass
class Flip:
    """A byte of a set that is another one."""

    one: Application
    path: str
    """Below the store."""

    @property
    def name(self) -> str:
        return f"flip-{Path(self.path).name.replace('.', '-')[-24:]}-{self.one.host.name}"

    @property
    def store(self) -> str:
        return f"{SCRATCH}/{self.name}"

    @property
    def object(self) -> str:
        return Path(self.path).name if self.path.startswith("objects/") else ""


def test_one_flipped_byte_of_a_set_fails_the_drill_and_the_set_counts_no_more(saved: World) -> None:
    world = saved
    flips = []
    chance = random.Random(7)
    for number, one in enumerate(world.applications.values()):
        set_id = one.look()["sets"][-1]
        sums = one.host.run("cat", f"{one.store}/sets/{set_id}/SHA256SUMS").splitlines()
        objects = [line.split("../../")[1] for line in sums if "../../" in line]
        files = [f"sets/{set_id}/{name}" for name in one.host.run("ls", f"{one.store}/sets/{set_id}").split() if name != "manifest.json"]
        dumps = [path for path in objects if ".tar." not in path]
        # Of each application another kind: its archives, its database, its own files.
        chosen = [chance.choice([sorted(set(objects) - set(dumps)), dumps, files][number % 3])]
        for path in objects + files if SOAK else chosen:
            flip = Flip(one, path)
            flips.append(flip)
            size = int(one.host.run("stat", "-c", "%s", f"{one.store}/{path}"))
            one.host.run("cp", "-a", one.store, flip.store)
            one.host.run("python3", "-c", FLIP, f"{flip.store}/{path}", str(chance.randrange(size)))
    more = {flip.name: {**flip.one.description(world.connections[flip.one.host.name]), "backup_store": flip.store} for flip in flips}
    run = world.play("backup_drill", list(more), more=more, fails=True)
    for flip in flips:
        entry = run.stats["opskit_backup_drill"][flip.name]
        set_id = flip.one.look()["sets"][-1]
        assert set_id in entry["message"], entry
        assert flip.object in entry["message"], entry
        recorded = proof(flip.one, set_id, flip.store)
        assert recorded["ok"] is False
        assert flip.object in [failure["object"] for failure in recorded["failures"]]
    # Reading the content alone says the same.
    run = world.play("backup_verify", list(more), more=more, fails=True)
    assert all(not run.stats["opskit_backup_verify"][flip.name]["ok"] for flip in flips)
    assert [left(host) for host in world.hosts.values()] == [""] * len(world.hosts)


@dataclass(frozen=True)
class Point:
    name: str
    everything: bool
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.name}{f'-{self.seconds:g}-s' if self.seconds else ''}-{'all' if self.everything else 'module'}"


POINTS = [(Point("isolated", True), Point("pg_restore", False)), (Point("pg_restore", True), Point("started", True))]
if SOAK:
    times = [Point("after", number % 2 == 0, 0.25 * number) for number in range(1, 25)]
    POINTS += [(Point("started", False), Point("isolated", False)), *zip(times, reversed(times), strict=True)]


@pytest.mark.parametrize("points", POINTS, ids=lambda points: "+".join(map(str, points)))
def test_killed_at_any_point_the_next_run_leaves_nothing(saved: World, points: tuple[Point, Point]) -> None:
    world = saved

    def kill_and_run_again(one: Application, point: Point) -> None:
        name = one.inventory_name
        before = state(one)
        for _try in range(TRIES):
            if world.strike(one, "backup_drill", point.name, point.everything, world.argv("backup_drill", [name], ()), point.seconds):
                break
        else:
            raise AssertionError(f"{point} was not met in {TRIES} runs")
        if point.name != "after":
            assert "opskit-drill" in left(one.host)
        assert state(one) == before
        run = world.play("backup_drill", [name])
        assert run.stats["opskit_backup_drill"][name]["recovery_time_s"] > 0
        assert left(one.host) == ""
        assert state(one) == before

    parallel(*(partial(kill_and_run_again, one, point) for one, point in zip(world.ledgers(), points, strict=False)))


def copy_store(one: Application, to: Host, store: str) -> None:
    """Bring a store to another host, as a copy off-site is."""
    packed = subprocess.run(one.host.argv("tar", "-C", one.store, "-c", "."), capture_output=True, check=True).stdout
    assert tarfile.open(fileobj=io.BytesIO(packed)).getnames()
    to.run("install", "-d", "-m", "700", store)
    subprocess.run(to.argv("tar", "-C", store, "-x"), input=packed, check=True)


def test_another_host_drills_what_is_older_and_refuses_what_does_not_fit(saved: World) -> None:
    world = saved
    older, newer = world.ledgers()
    shelf = next(one for one in world.applications.values() if not one.database and one.host is older.host)
    there, back = f"{SCRATCH}/from-{older.host.name}", f"{SCRATCH}/from-{newer.host.name}"
    copy_store(older, newer.host, there)
    copy_store(newer, older.host, back)
    first = older.description(world.connections[older.host.name])
    other = newer.description(world.connections[newer.host.name])
    never = {"application_smoke_checks": [{"id": "never", "type": "tcp", "port": 9, "timeout": 1}], "application_start_timeout": 8}
    refused: dict[str, tuple[str, Variables]] = {
        "major": ("the dump is of PostgreSQL 17", {**first, "backup_drill_store": back}),
        "command": (
            "only what systemd starts can be cut off",
            {**first, "application_service_manager": "command", "application_units": []},
        ),
        "space": ("are free", {**first, "backup_drill_dir": f"{SMALL}/drill"}),
        "never": ("did not become ready on the copy within 8 s", {**first, **never}),
        "crash": (
            "it does not run",
            {**first, "application_drill_env": {"DATABASE_URL": "nonsense://"}, "application_database_url_variable": ""},
        ),
    }
    # Other tests keep something there, too.
    older.host.sh(
        f"free=$(df --output=avail -B1 {SMALL} | tail -n 1); [ $free -lt {MIB} ] || head -c $((free - {MIB})) /dev/zero >{SMALL}/full"
    )
    more = {f"drill-{name}-{older.host.name}": variables for name, (_says, variables) in refused.items()}
    more[f"far-{newer.host.name}"] = {**other, "backup_drill_store": there}
    before = {one.inventory_name: (state(one), proof(one, one.look()["sets"][-1])) for one in (older, newer, shelf)}
    try:
        run = world.play("backup_drill", list(more), more=more, fails=True)
    finally:
        older.host.sh(f"rm -f {SMALL}/full")
    entries = run.stats["opskit_backup_drill"]
    for name, (says, _variables) in refused.items():
        assert says in " ".join(entries[f"drill-{name}-{older.host.name}"]["message"].split()), entries[f"drill-{name}-{older.host.name}"]
    far = entries[f"far-{newer.host.name}"]
    assert (far["ok"], far["set"]) == (True, before[older.inventory_name][0]["sets"][-1])
    assert proof(newer, far["set"], there)["level"] == "drill"
    # None of it says anything about the set.
    assert {one.inventory_name: (state(one), proof(one, one.look()["sets"][-1])) for one in (older, newer, shelf)} == before
    assert [left(host) for host in world.hosts.values()] == [""] * len(world.hosts)
