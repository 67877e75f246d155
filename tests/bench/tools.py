# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tools that are compared, each behind the same few calls. Every call is one or more whole processes.

What each call brings to an end is on the disk: restic and borg flush what they store, tar and every restore are followed by
`sync -f`. restic and borg compare each block with its hash as they read it, and zstd each frame with its checksum; this
collection compares each restored file with its SHA-256.
"""

from __future__ import annotations

import json
import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.opskit.runbooks.tests.bench import measure
from ansible_collections.opskit.runbooks.tests.bench.application import Application
from ansible_collections.opskit.runbooks.tests.bench.measure import Failure, Peak, pipe, run

DAILY, WEEKLY, MONTHLY = 7, 4, 3
MODULES = "ansible_collections.opskit.runbooks.plugins.modules."
SIMULATED = "ansible_collections.opskit.runbooks.tests.bench.simulated"


class Tool:
    """One way to save an application, restore all of it, and restore one project.

    A restore makes `app` in an empty folder; of one project there is a folder of its name somewhere below it.
    """

    name = ""
    aside: tuple[str, ...] = ()
    """Folders of the store that do not count as stored."""

    def __init__(self, work: Path, app: Application, python: str) -> None:
        self.work, self.app, self.python = work, app, python
        self.store = work / f"store-{type(self).__name__.lower()}"
        self.env = measure.environment(work)
        self.peak: Peak | None = None

    def version(self) -> str:
        raise NotImplementedError

    def reset(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(self.store, ignore_errors=True)

    def call(self, *argv: str, cwd: Path | None = None) -> str:
        return run(argv, cwd or self.app.root.parent, self.env, self.peak)

    def shell(self, script: str) -> str:
        return self.call(*pipe(script))

    def backup(self, at: datetime | None = None) -> None:
        """Save everything, as of a simulated moment where one is given."""
        raise NotImplementedError

    def verify(self) -> None:
        """Read everything that is stored and check its content."""
        raise NotImplementedError

    def restore(self, target: Path) -> None:
        raise NotImplementedError

    def project(self, target: Path) -> None:
        raise NotImplementedError

    def retain(self, at: datetime) -> None:
        """Delete what 7 daily, 4 weekly and 3 monthly let go."""
        raise NotImplementedError

    def kept(self) -> int:
        """How many backups there are."""
        raise NotImplementedError

    def stored(self) -> int:
        return measure.size_of(self.store, self.aside)


class Tar(Tool):
    name = "tar | zstd -3 -T0"

    def version(self) -> str:
        tar, zstd = (self.call(program, "--version").partition("\n")[0] for program in ("tar", "zstd"))
        return f"tar {tar.split()[-1]}, zstd {zstd.partition(' v')[2].split(',')[0]}"

    def reset(self) -> None:
        super().reset()
        self.store.mkdir()

    @property
    def archive(self) -> Path:
        return max(self.store.iterdir())

    def backup(self, at: datetime | None = None) -> None:
        archive = self.store / f"{at:%Y%m%d}.tar.zst" if at else self.store / "app.tar.zst"
        self.shell(f"tar --create {self.app.root.name} | zstd -3 -T0 -q -f -o {archive}; sync -f {archive}")

    def verify(self) -> None:
        self.call("zstd", "-tq", str(self.archive))

    def restore(self, target: Path) -> None:
        self.shell(f"zstd -dcq {self.archive} | tar --extract -p --directory={target}; sync -f {target}")

    def project(self, target: Path) -> None:
        path = self.app.project.relative_to(self.app.root.parent)
        self.shell(f"zstd -dcq {self.archive} | tar --extract -p --directory={target} {path}; sync -f {target}")

    def kept(self) -> int:
        return len(list(self.store.iterdir()))


class Restic(Tool):
    name = "restic"

    def version(self) -> str:
        return " ".join(self.call("restic", "version").split()[:2])

    def reset(self) -> None:
        super().reset()
        self.env.update(RESTIC_REPOSITORY=str(self.store), RESTIC_PASSWORD="benchmark")
        self.call("restic", "init")

    def backup(self, at: datetime | None = None) -> None:
        self.call("restic", "backup", "--quiet", *(["--time", f"{at:%Y-%m-%d %H:%M:%S}"] if at else []), self.app.root.name)

    def verify(self) -> None:
        self.call("restic", "check", "--quiet", "--read-data")

    def restore(self, target: Path) -> None:
        self.shell(f"restic restore latest --quiet --target {target}; sync -f {target}")

    def project(self, target: Path) -> None:
        path = self.app.project.relative_to(self.app.root.parent)
        self.shell(f"restic restore latest --quiet --target {target} --include /{path}; sync -f {target}")

    def retain(self, at: datetime) -> None:
        policy = f"--keep-daily {DAILY} --keep-weekly {WEEKLY} --keep-monthly {MONTHLY}".split()
        self.call("restic", "forget", "--quiet", *policy, "--prune")

    def kept(self) -> int:
        return len(json.loads(self.call("restic", "snapshots", "--json")))


class Borg(Tool):
    name = "borg zstd,3"

    def version(self) -> str:
        return self.call("borg", "--version").strip()

    def reset(self) -> None:
        super().reset()
        self.env.update(BORG_REPO=str(self.store), BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")
        self.count = 0
        self.call("borg", "init", "--encryption", "none")

    def backup(self, at: datetime | None = None) -> None:
        self.count += 1
        time = ["--timestamp", f"{at:%Y-%m-%dT%H:%M:%S}"] if at else []
        self.call("borg", "create", "--compression", "zstd,3", *time, f"::{self.count}", self.app.root.name)

    def verify(self) -> None:
        self.call("borg", "check", "--verify-data")

    def restore(self, target: Path) -> None:
        self.shell(f"cd {target}; borg extract ::{self.count}; sync -f {target}")

    def project(self, target: Path) -> None:
        path = self.app.project.relative_to(self.app.root.parent)
        self.shell(f"cd {target}; borg extract ::{self.count} {path}; sync -f {target}")

    def retain(self, at: datetime) -> None:
        policy = f"--keep-daily {DAILY} --keep-weekly {WEEKLY} --keep-monthly {MONTHLY}".split()
        self.call("borg", "prune", *policy)
        self.call("borg", "compact")

    def kept(self) -> int:
        return len(json.loads(self.call("borg", "list", "--json"))["archives"])


class Opskit(Tool):
    """The modules, each in a process of its own as Ansible starts them.

    A backup leaves the reading back to the call that verifies, as the other tools do; where retention counts, it is part of it.
    One project is restored by hand, as README.txt of a store says, each file compared with its hash.
    """

    name = "opskit.runbooks"
    aside = ("trash", "cache")  # what is deleted already, and what may be deleted at any time

    def __init__(self, work: Path, app: Application, python: str) -> None:
        super().__init__(work, app, python)
        self.last: dict[str, Any] = {}

    def version(self) -> str:
        lines = (measure.COLLECTION / "galaxy.yml").read_text().splitlines()
        return "opskit.runbooks " + next(line.split()[1] for line in lines if line.startswith("version:"))

    def module(self, name: str, at: datetime | None = None, **options: Any) -> dict[str, Any]:
        """Run a module, with a clock that stands at a moment where one is given, and return its result."""
        args = {"store": str(self.store), "application": "gateway", **options}
        file = self.work / "arguments.json"
        file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": args}))
        start = ["-m", SIMULATED, name, at.isoformat()] if at else ["-m", MODULES + name]
        try:
            result: dict[str, Any] = json.loads(self.call(self.python, *start, str(file)))
        except Failure as failure:
            try:
                words = json.loads(failure.output)["msg"]
            except (ValueError, KeyError):
                raise failure from None
            raise Failure(f"{name}: {words}") from None
        return result

    def source(self, root: Path, database: str = "") -> dict[str, Any]:
        item: dict[str, Any] = {"name": "gateway", "engine": "sqlite", "path": str(root / "data/gateway.db")}
        server = self.app.server
        if server:
            item = {"name": "gateway", "engine": "postgresql", "database": database or self.app.database}
            item.update(host=server.host, port=server.port, user=server.superuser)
        return {
            "paths": {
                "data": str(root / "data"),
                "environment": str(root / ".env"),
                "config": str(root / "config"),
                "projects": str(root / "projects"),
            },
            "logs": [str(root / "data/logs")],
            "volatile": [str(root / "data/cache"), str(root / "data/run")],
            "databases": [item],
        }

    def backup(self, at: datetime | None = None) -> None:
        self.last = self.module("backup_set", at, verify="content" if at else "none", **self.source(self.app.root))

    def verify(self) -> None:
        self.module("backup_verify", set="all", level="content")

    def restore(self, target: Path) -> None:
        (target / "app").mkdir()
        state = str(target / "state")
        self.module("backup_restore", set=self.last["set"]["id"], state_dir=state, **self.source(target / "app"))

    def project(self, target: Path) -> None:
        name = self.app.project.name
        # The members of each shard that count; a stale copy of a file may lie in another one.
        choose = (
            "import json, sys\n"
            "lines = [line for line in map(json.loads, sys.stdin) if not line.get('stale')]\n"
            'files = [line for line in lines if line["type"] == "file"]\n'
            'open(sys.argv[1] + "/sums", "w").writelines("%s  %s\\n" % (line["sha256"], line["path"]) for line in files)\n'
            'for shard in json.load(open("manifest.json"))["shards"]:\n'
            '    paths = [line["path"] for line in lines if line["shard"] == shard["id"]]\n'
            "    if paths:\n"
            '        open(sys.argv[1] + "/" + shard["object"], "w").write("\\n".join(paths))\n'
            '        print("../../objects/%s/%s" % (shard["object"][:2], shard["object"]))\n'
        )
        extract = f"tar --extract -p --blocking-factor=512 --directory={target} --no-recursion --verbatim-files-from"
        self.shell(f"""
            cd {self.store}/sets/{self.last["set"]["id"]}
            zstd -dcq files.jsonl.zst | grep '"path":"{name}/' | python3 -c {shlex.quote(choose)} {target} |
                while read -r object; do zstd -dcq $object | {extract} --files-from={target}/${{object##*/}}; done
            cd {target}
            sha256sum --quiet --check sums
            sync -f {target}
        """)

    def retain(self, at: datetime) -> None:
        self.module("backup_prune", at, daily=DAILY, weekly=WEEKLY, monthly=MONTHLY)

    def kept(self) -> int:
        return len(self.module("backup_set_info")["sets"])


class ByHand(Tool):
    """What a person would type: an archive of the files, a dump of the database."""

    name = "pg_dump, tar | zstd"

    def version(self) -> str:
        return self.call("pg_dump", "--version").strip()

    @property
    def login(self) -> str:
        server = self.app.server
        assert server
        return f"-h {server.host} -p {server.port} -U {server.superuser}"

    def reset(self) -> None:
        super().reset()
        self.store.mkdir()

    def backup(self, at: datetime | None = None) -> None:
        self.shell(
            f"tar --create {self.app.root.name} | zstd -3 -T0 -q -f -o {self.store}/app.tar.zst;"
            f"pg_dump {self.login} --format=custom --compress=0 {self.app.database} | zstd -3 -T0 -q -f -o {self.store}/gateway.dump.zst;"
            f"sync -f {self.store}"
        )

    def restore(self, target: Path) -> None:
        options = f"{self.login} --clean --if-exists --exit-on-error"
        self.shell(
            f"zstd -dcq {self.store}/app.tar.zst | tar --extract -p --directory={target};"
            f"zstd -dcq {self.store}/gateway.dump.zst | pg_restore {options} --dbname={self.app.database}; sync -f {target}"
        )


class OpskitServer(Opskit):
    def forget(self, target: Path) -> None:
        """Remove the database that the restore has put aside."""
        self.module("backup_restore", state="purged", state_dir=str(target / "state"), **self.source(target / "app"))


class Borgmatic(Tool):
    """borgmatic's hook for PostgreSQL; an uncompressed dump, because borg finds nothing twice in a compressed one."""

    name = "borgmatic zstd,3"

    def version(self) -> str:
        return f"borgmatic {self.call('borgmatic', '--version').strip()}"

    def reset(self) -> None:
        super().reset()
        server = self.app.server
        assert server
        (self.work / "borgmatic.yaml").write_text(f"""
location:
    working_directory: {self.app.root.parent}
    source_directories: [{self.app.root.name}]
    repositories: [{self.store}]
storage:
    compression: zstd,3
    unknown_unencrypted_repo_access_is_ok: true
hooks:
    postgresql_databases:
        - name: {self.app.database}
          port: {server.port}
          username: {server.superuser}
          options: --compress=0
""")
        # As `hostname` it would become a part of the path of borgmatic's named pipe: the dump then waits for ever.
        self.env["PGHOST"] = server.host
        self.borgmatic("rcreate", "--encryption", "none")

    def borgmatic(self, *argv: str) -> None:
        self.call("borgmatic", "--config", str(self.work / "borgmatic.yaml"), *argv)

    def backup(self, at: datetime | None = None) -> None:
        self.borgmatic("create")

    def restore(self, target: Path) -> None:
        self.borgmatic("extract", "--archive", "latest", "--destination", str(target))
        self.borgmatic("restore", "--archive", "latest")
        self.call("sync", "-f", str(target))


def require_unchanged(tool: Tool, before: int) -> None:
    """This collection's promise: nothing changed, nothing stored, and it says so."""
    if isinstance(tool, Opskit) and (tool.last["changed"] or tool.stored() != before):
        raise Failure(f"{tool.name} made a set although nothing changed: {tool.last.get('reason')}")
