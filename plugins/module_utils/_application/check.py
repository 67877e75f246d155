# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the description of an application one that the runbooks can work with, on this host?"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
from typing import Any, Callable, Dict, Iterator, List, Tuple
from urllib.parse import urlsplit

from .._core.clock import Clock
from .._core.errors import OpskitError
from .._core.operation import Operation
from .._core.plan import Plan
from .._postgresql.clients import installed
from .._postgresql.database import check_name
from .._postgresql.login import missing_driver
from .scopes import mistakes

SYSTEMD = "/run/systemd/system"
"""Exists where systemd is the init that runs: sd_booted(3)."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# systemd.unit(5): ASCII letters, digits and ":-_.\", one "@" for an instance; systemctl adds .service where no type is named.
UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]+)?\Z")

FOLDERS = ("data", "config", "projects")
"""Those of the usual paths that are folders wherever they exist."""

COMMANDS = ("start_command", "stop_command", "status_command")
PAUSE_COMMANDS = ("pause_command", "resume_command")
URLS = ("live_url", "ready_url", "metrics_url")


class ApplicationCheck(Operation):
    """Collects everything that is wrong with a description, so that it is mended in one go.

    Nothing of the application has to be there: after a disaster it isn't, and a restore needs the description then most
    of all. What is there has to be of the right kind.

    :param description: the options of the module ``application_check``, by name
    """

    def __init__(self, description: Dict[str, Any]) -> None:
        self._description = description
        self._paths: Dict[str, str] = {name: path for name, path in description["paths"].items() if path}
        self._databases: Dict[str, str] = {
            f"database {database['name']}": database["path"] or ""
            for database in description["databases"]
            if database["engine"] == "sqlite"
        }

    def plan(self) -> Plan:
        """Raise :class:`OpskitError` with all findings; there is never anything to do."""
        findings = list(self.findings())
        if findings:
            count = "1 mistake" if len(findings) == 1 else f"{len(findings)} mistakes"
            listed = "\n".join(f"- {finding}" for finding in findings)
            raise OpskitError(
                f"{count}:\n{listed}\nNothing was touched",
                f"the description of the application {self._description['name']!r}",
                "Correct these variables in the inventory and run the same command again",
            )
        return Plan("none")

    def result(self) -> Dict[str, Any]:
        """Return the paths that are set, and who the tasks run as."""
        return {"paths": self._paths, "packages": self._missing_packages(), "uid": os.geteuid()}

    def _missing_packages(self) -> List[str]:
        """Return the Debian packages that are needed and not installed."""
        packages = [] if shutil.which("zstd") else ["zstd"]
        if any(database["engine"] == "postgresql" for database in self._description["databases"]):
            packages += [missing_driver()] if missing_driver() else []
            packages += [] if installed("pg_dump") else ["postgresql-client"]
        return packages

    def findings(self) -> Iterator[str]:
        """Yield every mistake as one sentence that begins with the variable."""
        if not self._description["name"]:
            # The default of nearly everything else is made from it.
            yield "application_name: is not set; it is the one variable that every application needs"
            return
        for look in (
            self._names,
            self._absolute,
            self._kinds,
            self._apart,
            self._accounts,
            self._servers,
            self._service,
            self._pause,
            self._endpoints,
            self._smoke_checks,
            self._scopes,
        ):
            yield from look()

    def _names(self) -> Iterator[str]:
        if not NAME.match(self._description["name"]):
            yield (
                f"application_name: {self._description['name']!r} can't name folders and files; "
                "use letters, digits, dot, dash and underscore, a letter or digit first"
            )
        names = [database["name"] for database in self._description["databases"]]
        for name in sorted(set(names)):
            if not NAME.match(name):
                yield f"application_databases: {name!r} can't name a file; use letters, digits, dot, dash and underscore"
            if names.count(name) > 1:
                yield f"application_databases: the name {name!r} is there {names.count(name)} times; give each database its own"
        if not self._paths and not names:
            yield "application_data_dir: neither a path nor a database is set, so there is nothing to look after"

    def _named_paths(self) -> List[Tuple[str, str]]:
        """Return every path of the description with the variable it comes from."""
        named = [(self._variable(name), path) for name, path in self._paths.items()]
        named += [(f"application_databases ({name})", path) for name, path in self._databases.items()]
        named += [("application_logs", path) for path in self._description["logs"]]
        named += [("application_volatile", path) for path in self._description["volatile"]]
        named.append(("application_root", self._description["root"]))
        named.append(("application_state_dir", self._description["state_dir"]))
        return named

    @staticmethod
    def _variable(name: str) -> str:
        usual = {
            "data": "application_data_dir",
            "environment": "application_environment_file",
            "config": "application_config_dir",
            "projects": "application_projects_dir",
        }
        return usual.get(name, f"application_extra_paths ({name})")

    def _absolute(self) -> Iterator[str]:
        for name in sorted(self._paths):
            if not NAME.match(name):
                yield f"application_extra_paths: the name {name!r} is not usable; use letters, digits, dot, dash and underscore"
        root = self._description["root"]
        for variable, path in self._named_paths():
            if not path:
                continue  # one mistake, said once: _servers()
            if not os.path.isabs(root) and path.startswith(root + "/"):
                continue  # one mistake, said once: application_root
            if not os.path.isabs(path) or os.path.normpath(path) != path.rstrip("/"):
                yield f"{variable}: {path!r} is not a plain absolute path (no '..', '.' or '//')"

    def _kinds(self) -> Iterator[str]:
        wanted: List[Tuple[str, str, Callable[[int], bool], str]] = []
        for name, path in self._paths.items():
            if name in FOLDERS:
                wanted.append((self._variable(name), path, stat.S_ISDIR, "a folder"))
            elif name == "environment":
                wanted.append((self._variable(name), path, stat.S_ISREG, "a file"))
        for name, path in self._databases.items():
            wanted.append((f"application_databases ({name})", path, stat.S_ISREG, "a file"))
        wanted.append(("application_state_dir", self._description["state_dir"], stat.S_ISDIR, "a folder"))
        for variable, path, fits, kind in wanted:
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                continue
            except OSError as error:
                yield f"{variable}: {path} can't be looked at as this user ({error.strerror})"
                continue
            if not fits(mode):
                yield f"{variable}: {path} is there, but it is not {kind}"

    def _apart(self) -> Iterator[str]:
        saved = [(self._variable(name), path) for name, path in self._paths.items()]
        saved += [(f"application_databases ({name})", path) for name, path in self._databases.items()]
        for position, (variable, path) in enumerate(saved):
            for other, same in saved[:position]:
                if _plain(path) == _plain(same):
                    yield f"{variable}: {path} is the same path as {other}"
        for kind in ("logs", "volatile"):
            for area in self._description[kind]:
                for variable, path in saved:
                    if _holds(area, path):
                        yield f"application_{kind}: {area} holds {path} ({variable}), which then would not be restored"
        for variable, path in saved:
            if _holds(path, self._description["state_dir"]):
                yield (
                    f"application_state_dir: {self._description['state_dir']} lies in {path} ({variable}), "
                    "which a restore exchanges; choose a place outside the application"
                )

    def _accounts(self) -> Iterator[str]:
        for option, known in (("owner", pwd.getpwnam), ("group", grp.getgrnam)):
            name = self._description[option]
            try:
                if name:
                    known(name)
            except KeyError:
                yield f"application_{option}: this host knows no {'user' if option == 'owner' else 'group'} {name!r}"

    def _servers(self) -> Iterator[str]:
        for database in self._description["databases"]:
            variable = f"application_databases ({database['name']})"
            if database["engine"] == "postgresql":
                for option in ("passfile", "admin_passfile"):
                    if database[option] and not os.path.isabs(database[option]):
                        yield f"{variable}: the {option} {database[option]!r} is not an absolute path"
                for prefix in ("", "admin_"):
                    user = database[prefix + "os_user"]
                    if user and os.geteuid() != 0 and user != pwd.getpwuid(os.geteuid()).pw_name:
                        yield f"{variable}: only root can act as the {prefix}os_user {user!r}; set opskit_become, or use a passfile"
                try:
                    check_name(database["database"] or database["name"])
                except OpskitError as error:
                    yield f"{variable}: {error.what}"
            elif not database["path"]:
                yield f"{variable}: an SQLite database needs its path"

    def _service(self) -> Iterator[str]:
        units = [("application_units", unit) for unit in self._description["units"]]
        units += [("application_worker_units", unit) for unit in self._description["worker_units"]]
        commands = [name for name in COMMANDS if self._description[name]]
        if self._description["service_manager"] == "systemd":
            for name in commands:
                yield f"application_{name}: is set, but application_service_manager is 'systemd'; set that to 'command' or remove it"
            for variable, unit in units:
                if not UNIT.match(unit):
                    yield f"{variable}: {unit!r} is not the name of a systemd unit"
            if units and not os.path.isdir(SYSTEMD):
                yield (
                    "application_service_manager: 'systemd' does not run on this host; "
                    "set it to 'command' and give start, stop and status commands"
                )
        else:
            if units:
                yield f"{units[0][0]}: is set, but application_service_manager is 'command'; set that to 'systemd' or remove it"
            if commands and len(commands) < len(COMMANDS):
                missing = ", ".join(f"application_{name}" for name in COMMANDS if name not in commands)
                yield f"application_{commands[0]}: is set, but {missing} is not; the three belong together"
        for option in ("start_timeout", "stop_timeout"):
            if self._description[option] < 1:
                yield f"application_{option}: {self._description[option]} is not a number of seconds above 0"

    def _pause(self) -> Iterator[str]:
        given = [name for name in (*PAUSE_COMMANDS, "paused_command") if self._description[name]]
        for missing in PAUSE_COMMANDS:
            if given and missing not in given:
                yield f"application_{given[0]}: is set, but application_{missing} is not; a pause has to be begun and ended"

    def _endpoints(self) -> Iterator[str]:
        for option in URLS:
            url = self._description[option]
            if not url:
                continue
            try:
                parts = urlsplit(url)
                whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                yield f"application_{option}: this is not a URL that can be read"
                continue
            if parts.username is not None or parts.password is not None:
                # Not shown: what stands before the @ is a secret.
                yield f"application_{option}: holds a user or password, which would show in logs; take it out"
            elif not whole:
                yield f"application_{option}: {url!r} is not an http or https URL with a host"

    def _smoke_checks(self) -> Iterator[str]:
        ids: List[str] = []
        for position, check in enumerate(self._description["smoke_checks"]):
            name = check.get("id")
            if not isinstance(name, str) or not name or not isinstance(check.get("type"), str):
                yield f"application_smoke_checks: number {position + 1} lacks an 'id' or a 'type'"
            elif name in ("live", "ready"):
                yield f"application_smoke_checks: the id {name!r} is taken by application_{name}_url; choose another"
            elif name in ids:
                yield f"application_smoke_checks: the id {name!r} is there more than once"
            else:
                ids.append(name)

    def _scopes(self) -> Iterator[str]:
        if not os.path.isabs(self._description["root"]):
            return  # one mistake, said once: application_root
        for mistake in mistakes(self._description["scopes"], [database["name"] for database in self._description["databases"]]):
            yield f"application_scopes: {mistake}"


def application_check(params: Dict[str, Any], _clock: Clock) -> ApplicationCheck:
    """Build the check from the module's parameters."""
    return ApplicationCheck(params)


def _plain(path: str) -> str:
    return path.rstrip("/") or "/"


def _holds(folder: str, path: str) -> bool:
    """True when the path is the folder or lies below it."""
    return _plain(path) == _plain(folder) or path.startswith(_plain(folder).rstrip("/") + "/")
