# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two applications on each host of the lab, and the runbooks run on them as an operator would."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.opskit.runbooks.tests.e2e.world import Run, wait_until

HERE = Path(__file__).resolve().parent
COLLECTION = HERE.parents[1]
SOAK = os.environ.get("OPSKIT_TEST_SIZE") == "soak"
PLAYBOOK_SECONDS = 400
PORTS = {"shelf": 8181, "ledger": 8182}
PASSFILE = "/etc/opskit-lab.pgpass"
SCRATCH = "/var/tmp/opskit-lab"
SMALL = "/mnt/small"  # a file system of 64 MiB; the lab's hosts have it, others may mount it
FORKS = 8

RECORDS = {"backup_restore_scope": "restore_partial.json"}
"""Where a module writes down how far it has come, if not where a restore does."""

# The one warning that has its reason here: the stores lie beside the data.
EXPECTED_WARNINGS = ("on the same file system",)

Variables = dict[str, Any]
Look = dict[str, Any]

OF_PROJECT = "project_id IN (SELECT id FROM projects WHERE slug = :value)"
SCOPES: Variables = {
    "project": {
        "rows": [
            {
                "table": "users",
                "identity": ["name"],
                "where": "id IN (SELECT user_id FROM projects WHERE slug = :value)",
                "restore": False,
            },
            {
                "table": "providers",
                "identity": ["name"],
                "where": f"id IN (SELECT provider_id FROM usage WHERE {OF_PROJECT})",
                "restore": False,
            },
            {"table": "projects", "identity": ["slug"], "where": "slug = :value"},
            {"table": "usage", "identity": ["project_id", "type", "created_at"], "where": OF_PROJECT},
            {"table": "uploads", "identity": ["path"], "where": OF_PROJECT},
        ]
    },
    "provider_settings": {"rows": [{"table": "providers", "identity": ["name"]}], "key_bound": False},
    "user_preferences": {
        "value": "optional",
        "key_bound": False,
        "rows": [
            {"table": "users", "identity": ["name"], "where": ":value IS NULL OR name = :value"},
            {
                "table": "user_preferences",
                "identity": ["user_id", "key"],
                "where": ":value IS NULL OR user_id IN (SELECT id FROM users WHERE name = :value)",
            },
        ],
    },
}
LOOSE_UPLOADS: Variables = {
    "description": "Uploads of no project",
    "rows": [{"table": "uploads", "identity": ["path"], "where": "project_id IS NULL"}],
}

BLANK = f"""
for app in {" ".join(PORTS)}; do
    systemctl disable --quiet --now $app@blue.service 2>/dev/null
    rm -rf /opt/$app /etc/$app /usr/local/lib/$app /usr/local/bin/$app /etc/systemd/system/$app@.service /var/backups/opskit/$app
    ! id -u $app >/dev/null 2>&1 || userdel $app
done
rm -f /etc/systemd/system/opskit-pause-* /etc/systemd/system/multi-user.target.wants/opskit-pause-*
systemctl daemon-reload
[ ! -d /etc/postgresql/*/small ] || pg_dropcluster --stop $(cd /etc/postgresql && ls) small
rm -rf /var/lib/opskit/*-$(hostname) /var/lib/opskit/long {PASSFILE} {SCRATCH} {SMALL}/*
cd /
psql() {{ runuser --user postgres -- psql -XAtq -v ON_ERROR_STOP=1 "$@"; }}
for one in $(psql -c "SELECT gid FROM pg_prepared_xacts WHERE database ~ '^ledger'"); do
    psql -d $(psql -c "SELECT database FROM pg_prepared_xacts WHERE gid = '$one'") -c "ROLLBACK PREPARED '$one'"
done
for one in $(psql -c "SELECT datname FROM pg_database WHERE datname ~ '^ledger'"); do psql -c "DROP DATABASE \\"$one\\" WITH (FORCE)"; done
for one in $(psql -c "SELECT rolname FROM pg_roles WHERE rolname ~ '^ledger'"); do psql -c "DROP ROLE $one"; done
"""

PREPARE = f"""
set -e
apt-get -q purge -y python3-apt zstd >/dev/null
settings=$(echo /etc/postgresql/*/main)
printf "listen_addresses = '*'\\nmax_prepared_transactions = 4\\n" >$settings/conf.d/opskit-lab.conf
grep -q '^host all all samenet' $settings/pg_hba.conf || echo 'host all all samenet scram-sha-256' >>$settings/pg_hba.conf
systemctl restart postgresql.service
mkdir -p -m 1777 {SCRATCH}
"""

# A server tells some conditions of a table with other casts once the table was loaded from a dump; then they stay as they are.
# The texts of pg_dump can be compared when that lies behind the database.
MOVE_ONCE = """
set -e
cd /
systemctl stop ledger@blue.service
as() { runuser --user postgres -- "$@"; }
as pg_dump --format=custom --file=/tmp/ledger.dump ledger
as psql -Xq -c 'DROP DATABASE ledger' -c 'CREATE DATABASE ledger OWNER ledger TEMPLATE template0'
as pg_restore --exit-on-error --dbname=ledger /tmp/ledger.dump
rm /tmp/ledger.dump
"""


class Host:
    """A host of the lab, on which the tests are root."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        # A socket's path has little room.
        self._control = tempfile.mkdtemp(prefix="lab-", dir="/tmp")

    def argv(self, *words: str) -> list[str]:
        lab = os.environ["OPSKIT_LAB"]
        options = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self._control}/%C", "-o", "ControlPersist=600"]
        return ["ssh", "-F", f"{lab}/ssh_config", *options, self.name, shlex.join(["sudo", "--", *words])]

    def run(self, *words: str, text: str = "", check: bool = True) -> str:
        """Run a command with this input and return its output."""
        argv = self.argv(*words)
        # A journal may hold bytes that are no text.
        done = subprocess.run(argv, input=text, capture_output=True, text=True, errors="replace", timeout=180, check=False)
        assert not check or done.returncode == 0, f"{self.name}: {shlex.join(words)}\n{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sh(self, script: str, check: bool = True) -> str:
        return self.run("sh", "-s", text=script, check=check)

    def sql(self, statements: str, database: str = "postgres") -> str:
        """Run SQL as the superuser; rows are lines, columns divided by `|`."""
        words = ["runuser", "--user", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
        return self.run(*words, text=f"\\cd /\n{statements}").rstrip("\n")

    def python(self, script: str, *words: str) -> str:
        return self.run("python3", "-c", (HERE / script).read_text(), *words)

    @contextlib.contextmanager
    def command_lines(self, seen: list[str]) -> Iterator[None]:
        """Collect the command line of each process that runs on the host meanwhile."""
        argv = self.argv("python3", "-c", (HERE / "sample.py").read_text())
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield
        finally:
            seen.extend(json.loads(process.communicate("\n", timeout=60)[0]))

    @contextlib.contextmanager
    def background(self, script: str) -> Iterator[None]:
        """Have a shell script at work meanwhile; it ends when its input does."""
        guarded = f"trap 'kill 0' EXIT\n({script}) >/dev/null 2>&1 &\ncat"
        process = subprocess.Popen(self.argv("setsid", "--wait", "sh", "-c", guarded), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.communicate(timeout=60)

    def close(self) -> None:
        lab = os.environ["OPSKIT_LAB"]
        argv = ["ssh", "-F", f"{lab}/ssh_config", "-o", f"ControlPath={self._control}/%C", "-O", "exit", self.name]
        subprocess.run(argv, capture_output=True, check=False)  # none is open where nothing was asked
        # The one that is told to exit says so before it has removed its socket.
        wait_until(lambda: not os.listdir(self._control), "the connection is closed", 30)
        os.rmdir(self._control)


class Application:
    """One gateway under systemd. Its name in the inventory says on which host."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.inventory_name = f"{name}-{host.name}"
        self.root, self.unit = f"/opt/{name}", f"{name}@blue.service"
        self.store, self.state = f"/var/backups/opskit/{name}", f"/var/lib/opskit/{self.inventory_name}"
        self.database = "ledger" if name == "ledger" else ""
        self.ledger = f"{SCRATCH}/{name}.jsonl"
        self.passfile_password = ""

    def description(self, connection: Variables) -> Variables:
        url = f"http://127.0.0.1:{PORTS[self.name]}"
        common: Variables = {
            **connection,
            "application_name": self.name,
            "application_owner": self.name,
            "application_group": self.name,
            "application_units": [self.unit],
            "application_live_url": f"{url}/healthz",
            "application_ready_url": f"{url}/readyz",
            "application_database_schema_query": "SELECT version_num FROM alembic_version",
            "application_schema_command": [f"/usr/local/bin/{self.name}", "schema", "--known"],
            "application_migrate_command": [f"/usr/local/bin/{self.name}", "migrate"],
            "application_pause_command": [f"/usr/local/bin/{self.name}", "pause"],
            "application_resume_command": [f"/usr/local/bin/{self.name}", "resume"],
            "application_paused_command": [f"/usr/local/bin/{self.name}", "paused"],
            "application_key_variables": ["APP_SECRET_KEY"],
            "application_scopes": {**SCOPES, "loose_uploads": {**LOOSE_UPLOADS, "paths": [f"{self.root}/data/uploads"]}},
        }
        if not self.database:
            return {**common, "application_database_path": f"{self.root}/data/gateway.db"}
        common.update(application_database_engine="postgresql", application_database_url_variable="DATABASE_URL")
        # One host by peer, as it is without a word, the other by password.
        return {**common, **self.login("ledger_admin", PASSFILE)} if self.passfile_password else common

    @staticmethod
    def login(user: str, passfile: str, address: str = "127.0.0.1") -> Variables:
        return {"application_database_address": address, "application_database_user": user, "application_database_passfile": passfile}

    def look(self) -> Look:
        what = {"root": self.root, "store": self.store, "state": self.state, "unit": self.unit, "database": self.database}
        return dict(json.loads(self.host.run("python3", "-", json.dumps(what), text=(HERE / "look.py").read_text())))

    def cli(self, *words: str) -> dict[str, Any]:
        return dict(json.loads(self.host.run(self.name, *words).splitlines()[-1]))

    def traffic(self, seconds: float, rate: float = 20) -> None:
        """Write; everything stands still afterwards."""
        self.cli("traffic", "--ledger", self.ledger, "--seconds", str(seconds), "--rate", str(rate))

    def ready(self) -> bool:
        script = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORTS[self.name]}/readyz', timeout=5)"
        return subprocess.run(self.host.argv("python3", "-c", script), capture_output=True, timeout=60, check=False).returncode == 0

    def set_password(self, password: str, live: bool = True) -> None:
        """Give the role another password, and the live .env as well unless told otherwise."""
        self.host.sql(f"ALTER ROLE {self.database} PASSWORD $canary${password}$canary$")
        if live:
            quoted = urllib.parse.quote(password, safe="")
            text = (
                "import re\n"
                f"path = '{self.root}/.env'\n"
                "text = open(path).read()\n"
                f"text, count = re.subn('(://{self.database}:)[^@]*@', lambda found: found[1] + '{quoted}@', text)\n"
                "assert count == 1\n"
                "open(path, 'w').write(text)\n"
            )
            self.host.run("python3", "-", text=text)
            self.host.run("systemctl", "restart", self.unit)

    def destroy(self, role: bool = False) -> None:
        """Remove everything under the running application: data, settings, configuration, projects, database."""
        below = " ".join(f"{self.root}/{name}" for name in (".env", "config", "projects"))
        self.host.sh(f"rm -rf {below} {self.root}/data/* {self.root}/data/.[!.]*")
        if self.database:
            self.host.sql(f"DROP DATABASE {self.database} WITH (FORCE)")
            if role:
                self.host.sql(f"DROP ROLE {self.database}")

    def secrets(self) -> dict[str, str]:
        """Everything that must not be seen, by where it stands."""
        lines = [line.partition("=") for line in self.host.run("cat", f"{self.root}/.env").splitlines()]
        values = {name: value for name, _equals, value in lines}
        found = {name: values[name] for name in ("APP_SECRET_KEY", "ADMIN_TOKEN")}
        if self.database:
            found["in DATABASE_URL"] = str(urllib.parse.urlsplit(values["DATABASE_URL"]).password)
            found["password"] = urllib.parse.unquote(found["in DATABASE_URL"])
        if self.passfile_password:
            found["passfile"] = self.passfile_password
        return found


class World:
    """The hosts, the applications on them, and their inventory."""

    def __init__(self, folder: Path, inventory: Path) -> None:
        self.folder, self.lab_inventory = folder, inventory
        self.temporary = folder / "tmp"
        self.temporary.mkdir(mode=0o700)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") or name == "ANSIBLE_LOG_PATH"},
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            "TMPDIR": str(self.temporary),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.temporary / "controller"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": tempfile.mkdtemp(prefix="lab-", dir="/tmp"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTION.parents[2]),
            "ANSIBLE_INJECT_FACT_VARS": "false",
            "ANSIBLE_FORKS": str(FORKS),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SHOW_CUSTOM_STATS": "true",
        }
        argv = ["ansible-inventory", "-i", str(inventory), "--list"]
        listed = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=True).stdout
        self.connections: dict[str, Variables] = json.loads(listed)["_meta"]["hostvars"]
        self.hosts = {name: Host(name, found["lab_address"]) for name, found in sorted(self.connections.items())}
        self.applications = {
            one.inventory_name: one for host in self.hosts.values() for one in (Application(host, "shelf"), Application(host, "ledger"))
        }
        self._plays = 0
        self._lock = threading.Lock()

    def ledgers(self) -> list[Application]:
        return [one for one in self.applications.values() if one.database]

    def prepare(self) -> None:
        """Blank hosts, then the applications with a little content, one ledger's admin logging in by password."""
        for host in self.hosts.values():
            host.sh(BLANK)
            host.sh(PREPARE)
        install = ["ansible-playbook", "-i", str(self.lab_inventory), str(HERE / "install.yml")]
        self.finish(install, ANSIBLE_ROLES_PATH=str(COLLECTION / "examples/roles"))
        first, *_others = self.ledgers()
        first.passfile_password = f"canary-{secrets.token_hex(12)}"
        for one in self.applications.values():
            if one.database:
                one.host.sh(MOVE_ONCE)
                # What has a meaning in a URL, a shell, SQL or an INI file.
                one.set_password(f"ca/na:r@y%20 '\"$1;#\\{secrets.token_hex(4)}")
            one.cli("seed", "--rows", "300", "--projects", "4", "--uploads", "8")
        self.login(first.host, "ledger_admin", first.passfile_password, PASSFILE, "SUPERUSER")

    @staticmethod
    def login(host: Host, role: str, password: str, passfile: str, rights: str = "", line: str = "*:*:*") -> None:
        """Make a role, and a passfile that logs it in."""
        host.sql(f"CREATE ROLE {role} LOGIN {rights} PASSWORD $canary${password}$canary$")
        host.run("sh", "-c", f"umask 077 && cat >{passfile}", text=f"{line}:{role}:{password}\n")

    def close(self) -> None:
        for host in self.hosts.values():
            host.sh(BLANK)
            host.sh(
                "rm -f /etc/postgresql/*/main/conf.d/opskit-lab.conf; sed -i '/^host all all samenet/d' /etc/postgresql/*/main/pg_hba.conf"
            )
            host.run("systemctl", "restart", "postgresql.service")
            host.close()

    def argv(self, runbook: str, hosts: list[str], words: tuple[str, ...], more: dict[str, Variables] | None = None) -> list[str]:
        """Return the command of one run on some of the applications, or on others that are described only for it."""
        described = {name: one.description(self.connections[one.host.name]) for name, one in self.applications.items()}
        with self._lock:
            self._plays += 1
            inventory = self.folder / f"inventory-{self._plays}.json"
        inventory.write_text(json.dumps({"all": {"hosts": {**described, **(more or {})}}}))
        confirmed = ["-e", f"opskit_confirm={','.join(hosts)}"] if runbook.startswith("restore") else []
        options = ["-i", str(inventory), "--limit", ",".join(hosts), "-v"]
        return ["ansible-playbook", f"opskit.runbooks.{runbook}", *options, *confirmed, *words]

    def play(
        self, runbook: str, hosts: list[str], *words: str, fails: bool = False, more: dict[str, Variables] | None = None, **env: str
    ) -> Run:
        return self.finish(self.argv(runbook, hosts, words, more), fails, **env)

    def finish(self, argv: list[str], fails: bool = False, **env: str) -> Run:
        done = subprocess.run(
            argv,
            cwd=self.temporary,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            timeout=PLAYBOOK_SECONDS,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{shlex.join(argv)} ended with {done.returncode}\n{done.stdout}"
        warnings = [line for line in done.stdout.splitlines() if "WARNING]" in line and not any(one in line for one in EXPECTED_WARNINGS)]
        assert warnings == [], done.stdout
        # At -vvv Ansible shows its own with everything that fails, also with what is then tried again.
        assert "-vvv" in argv or "Traceback (most recent call last)" not in done.stdout, done.stdout
        return Run(done.returncode, done.stdout)

    def strike(
        self,
        application: Application,
        module: str,
        point: str,
        everything: bool,
        argv: list[str],
        seconds: float = 0,
        session: bool = False,
    ) -> bool:
        """Run and kill the module on the host at a point, with ansible-playbook or without; False when the point was not seen.

        :param session: kill all that is in its login session, too
        """
        what = {"module": module, "point": point, "seconds": seconds, "session": session}
        what.update(state=application.state, store=application.store, record=RECORDS.get(module, "restore.json"))
        watching = application.host.argv("python3", "-c", (HERE / "strike.py").read_text(), json.dumps(what))
        with subprocess.Popen(watching, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
            process = subprocess.Popen(
                [*argv, "-e", "ansible_pipelining=false"],  # so that the module's process can be told apart
                cwd=self.temporary,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                wait_until(lambda: watcher.poll() is not None or process.poll() is not None, "struck or done", PLAYBOOK_SECONDS)
                struck = watcher.poll() is not None
                if struck and everything:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(PLAYBOOK_SECONDS)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                said = watcher.communicate("\n", timeout=60)[0]
        wait_until(lambda: self.is_quiet(application.host), "what the killed run has left on the host has ended", 60)
        return struck and said.strip() == "struck"

    @staticmethod
    def is_quiet(host: Host) -> bool:
        return host.run("pgrep", "-f", "AnsiballZ_[a-z_]*[.]py$|[p]g_(dump|restore) ", check=False) == ""


def parallel(*works: Callable[[], None]) -> None:
    """Do several things at once; the first failure is raised when all are at their end."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
