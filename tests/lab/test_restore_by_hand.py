# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set restored by its own script in a root folder that holds sh, tar, zstd and coreutils, and nothing else: no Python, nothing of ours.

Then a database in a server is loaded with PostgreSQL's own programs, in the words that the restored folder says.
"""

from __future__ import annotations

import json
import shlex
from functools import partial

from ansible_collections.opskit.runbooks.tests.lab.world import HERE, SCRATCH, Application, Look, World, parallel

# What restore.sh may use, with the libraries that each needs.
BARE = """
set -e
mkdir -p $bare/bin $bare/dev
: >$bare/dev/null
for name in sh tar zstd sha256sum chmod chown dirname id ls mkdir rm tee touch; do
    program=$(readlink -f "$(command -v $name)")
    cp "$program" $bare/bin/$name
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do cp --parents --dereference "$library" $bare; done
done
cp --archive $store $bare/store
"""


def by_hand(one: Application, set_id: str) -> Look:
    """Restore a set with what a bare system has, and look at what came out."""
    bare = f"{SCRATCH}/bare-{one.name}"
    one.host.sh(f"rm -rf {bare}; bare={bare} store={one.store}\n{BARE}")
    try:
        said = one.host.run("chroot", bare, "/bin/sh", f"/store/sets/{set_id}/restore.sh", "/out")
        assert said.endswith(f"set {set_id} is in /out\n")
        assert one.host.sh(f"find {bare}/out -name '*.base'") == ""
        one.host.sh(f"mv {bare}/out/environment/.env {bare}/out/.env")
        what = {"root": f"{bare}/out", "store": one.store, "state": one.state, "unit": one.unit, "database": ""}
        if one.database:
            what["database"] = "ledger_by_hand"
            load(one, f"{bare}/out/databases/{one.database}")
        return dict(json.loads(one.host.run("python3", "-", json.dumps(what), text=(HERE / "look.py").read_text())))
    finally:
        one.host.sh(f"rm -rf {bare}")


def load(one: Application, folder: str) -> None:
    """Do what README.txt says, under another name."""
    lines = [line.strip() for line in one.host.run("cat", f"{folder}/README.txt").splitlines()]
    script = []
    for program, place in (("createdb", -1), ("pg_restore", -2)):
        (words,) = (shlex.split(line) for line in lines if line.startswith(f"{program} "))
        assert one.database in words[place]
        words[place] = words[place].replace(one.database, "ledger_by_hand")
        script.append(shlex.join(["runuser", "--user", "postgres", "--", *words]))
    # The server's user may not read the restored folders.
    one.host.sh(f"set -e; cd {folder}; dump=$(mktemp -d); cp postgresql.dump $dump; chown -R postgres $dump; cd $dump; {'; '.join(script)}")


def test_without_anything_of_ours(world: World) -> None:
    """Three sets in a row: what is whole, what is a delta, and what is stale in the last come out as they were."""

    def check(one: Application) -> None:
        name = one.inventory_name
        looks = {}
        for _number in range(3):
            one.traffic(1)
            run = world.play("backup", [name])
            looks[run.stats["opskit_backup"][name]["set"]["id"]] = one.look()
        manifest = json.loads(one.host.run("cat", f"{one.store}/sets/{max(looks)}/manifest.json"))
        assert manifest["databases"][0]["base"]
        assert any("-changes." in shard["id"] for shard in manifest["shards"])
        for set_id, saved in looks.items():
            found = by_hand(one, set_id)
            assert found["files"] == saved["files"]
            assert found["rows"] == saved["rows"]
            if one.database:
                one.host.sql("DROP DATABASE ledger_by_hand")

    parallel(*(partial(check, one) for one in world.applications.values()))
