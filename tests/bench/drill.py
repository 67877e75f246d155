# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore drills of an application with the bench's content, on a host of the lab, because they need systemd."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.measure import Failure, progress
from ansible_collections.opskit.runbooks.tests.lab.world import Application, World

PARTS = ("isolate_s", "stage_s", "cluster_s", "load_s", "compare_s", "start_s")
CONTENT = "/var/tmp/opskit-bench"


def main(work: Path, scale: float, rounds: int, _python: str) -> None:
    folder = work / "lab"
    folder.mkdir()
    if not (Path(os.environ["OPSKIT_LAB"]) / "ssh_config").exists():
        raise Failure("the part drill needs the hosts of the lab, where systemd runs: make lab")
    world = World(folder, Path(os.environ["OPSKIT_LAB_INVENTORY"]).resolve())
    try:
        progress("drill: installing the application")
        world.prepare()
        _measure(world, world.ledgers()[-1], scale, rounds)
    except AssertionError as failure:
        raise Failure(str(failure)) from None
    finally:
        world.close()


def _measure(world: World, app: Application, scale: float, rounds: int) -> None:
    name = app.inventory_name
    progress("drill: writing its content")
    database = _fill(app, scale)
    made = world.play("backup", [name]).stats["opskit_backup"][name]["set"]
    results: dict[str, list[float]] = {}
    for number in range(rounds):
        progress(f"drill: round {number + 1} of {rounds}")
        run = world.play("backup_drill", [name])
        entry = run.stats["opskit_backup_drill"][name]
        results.setdefault("recovery time", []).append(entry["recovery_time_s"])
        for part in PARTS:
            results.setdefault(part, []).append(entry["phases"][part])
        results.setdefault("all, with the removal", []).append(run.one("Module | Drill")["duration_s"])
    major = app.host.sh("ls /etc/postgresql").strip()
    print(
        f"\n{made['files']} files and a database of {database / 1e6:.0f} MB in PostgreSQL {major}, on {app.host.name} of the lab with "
        f"{app.host.run('nproc').strip()} cores; medians of {rounds}; stage runs beside cluster, load and compare"
    )
    measure.table("seconds", ["opskit"], [(part, [f"{statistics.median(values):.2f}"]) for part, values in results.items()])


def _fill(app: Application, scale: float) -> int:
    """Write the bench's content into an application and return the bytes of its database."""
    folder = f"{CONTENT}/ansible_collections/opskit/runbooks"
    packed = subprocess.run(["tar", "-C", str(measure.COLLECTION), "-c", "tests/bench", "tests/shared"], stdout=subprocess.PIPE, check=True)
    app.host.run("mkdir", "-p", folder)
    try:
        subprocess.run(app.host.argv("tar", "-C", folder, "-x"), input=packed.stdout, check=True)
        argv = app.host.argv("python3", f"{folder}/tests/bench/fill.py", app.root, app.name, str(scale))
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise Failure(f"the content could not be written on {app.host.name}")
        return int(done.stdout)
    finally:
        app.host.run("rm", "-rf", CONTENT)
