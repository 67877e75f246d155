# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the rooms meet: what a module's parameters become."""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, List, Optional

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .._backup.contents import Shape
from .._backup.create import BackupSet, Options
from .._backup.diff import Diff
from .._backup.diff import Options as DiffOptions
from .._backup.info import Question, SetInfo
from .._backup.prune import Prune
from .._backup.restore import Options as RestoreOptions
from .._backup.restore import Restore
from .._backup.retention import Policy
from .._backup.source import Source, require_absolute
from .._backup.store import Store
from .._backup.verify import ImageCheckers, VerifySets
from .._core.clock import Clock
from .._core.errors import OpskitError
from .._core.protocols import DatabaseSource, RowTarget
from .._health.spec import ARGUMENTS as HEALTH
from .._postgresql.database import PostgresDatabase, check_name
from .._postgresql.database import check_image as check_dump
from .._postgresql.login import Login
from .._postgresql.restore import PostgresTarget
from .._postgresql.rows import PostgresRows
from .._sqlite.database import SqliteDatabase
from .._sqlite.rows import SqliteRows
from .description import LOGIN, database_spec
from .drill import Drill, Server, files_below
from .drill import Options as DrillOptions
from .pause import KINDS, CommandPause
from .restore_scope import Options as ScopeOptions
from .restore_scope import RestoreScope
from .scopes import find_scope, read_scopes

COLLECTION = "1.0.0"
"""Version of this collection; a test compares it with galaxy.yml."""


def store_spec() -> Dict[str, Any]:
    """Return the options of every module that works on a store."""
    return {
        "store": {"type": "path", "required": True},
        "application": {"type": "str", "required": True},
    }


def lock_spec() -> Dict[str, Any]:
    """Return the options of every module that takes a lock of the store."""
    return {
        "lock_timeout": {"type": "int", "default": 0},
        "lock_dir": {"type": "path"},
    }


def key_spec() -> Dict[str, Any]:
    """Return the option that says what the application's keys are called."""
    return {"key_variables": {"type": "list", "elements": "str", "default": [], "no_log": False}}


def source_spec() -> Dict[str, Any]:
    """Return the options that say what an application consists of."""
    return {
        "paths": {"type": "dict", "required": True},
        "projects": {"type": "path"},
        "logs": {"type": "list", "elements": "path", "default": []},
        "volatile": {"type": "list", "elements": "path", "default": []},
        "databases": database_spec(),
        "database_timeout": {"type": "int", "default": 30},
    }


def require_range(params: Dict[str, Any], name: str, lowest: int, highest: Optional[int] = None) -> None:
    """Raise :class:`OpskitError` for a number that the option does not take."""
    value = params[name]
    if value < lowest or (highest is not None and value > highest):
        limits = f"from {lowest} to {highest}" if highest is not None else f"{lowest} or more"
        raise OpskitError(f"{name} is {value}, but has to be {limits}", todo="Mend it; nothing was touched")


def build_store(params: Dict[str, Any]) -> Store:
    """Return the store that the parameters name. Raises :class:`OpskitError` for a path that is not absolute."""
    require_absolute(params["store"])
    if "lock_timeout" in params:
        require_range(params, "lock_timeout", 0)
    lock_dir = params.get("lock_dir") or ""
    if lock_dir:
        require_absolute(lock_dir)
    return Store(params["store"], params["application"], lock_dir)


def build_source(params: Dict[str, Any]) -> Source:
    """Return the application as the store sees it. Raises :class:`OpskitError` for a wrong description."""
    paths = {name: path for name, path in params["paths"].items() if path}
    for name, path in paths.items():
        if not isinstance(path, str):
            raise OpskitError(f"{name} is not a path but {path!r}", "paths", "Name one absolute path")
    require_range(params, "database_timeout", 0)
    return Source(
        paths,
        params["projects"] or paths.get("projects"),
        [path for path in params["logs"] if path],
        [path for path in params["volatile"] if path],
        [build_database(item, params["database_timeout"]) for item in params["databases"]],
    )


def build_database(item: Dict[str, Any], timeout: float) -> DatabaseSource:
    """Return one database of the description. Raises :class:`OpskitError` for a wrong one."""
    if item["engine"] == "postgresql":
        return _postgres(item, timeout)
    return _sqlite(item, timeout)


def _sqlite(item: Dict[str, Any], timeout: float) -> SqliteDatabase:
    if not item["path"]:
        raise OpskitError(f"the database {item['name']} has no path", "databases", "Name the file that SQLite keeps it in")
    require_absolute(item["path"])
    return SqliteDatabase(item["name"], item["path"], timeout, item["schema_query"] or "")


def _postgres(item: Dict[str, Any], timeout: float) -> PostgresDatabase:
    check_name(item["database"] or item["name"])
    return PostgresDatabase(item["name"], item["database"] or item["name"], _login(item, ""), timeout, item["schema_query"] or "")


def _login(item: Dict[str, Any], prefix: str) -> Login:
    """Return the login that the options with this prefix describe; host and port are the same for all."""
    values = {name: item[prefix + name] or "" for name in LOGIN}
    if values["passfile"]:
        require_absolute(values["passfile"])
    return Login(host=item["host"] or "", port=item["port"] or 0, **values)


def build_servers(params: Dict[str, Any]) -> Dict[str, PostgresTarget]:
    """Return where the databases in servers are brought back to, by name: by the admin's login, where there is one."""
    servers: Dict[str, PostgresTarget] = {}
    for item in params["databases"]:
        if item["engine"] == "postgresql":
            has_admin = any(item["admin_" + name] for name in LOGIN)
            login = _login(item, "admin_" if has_admin else "")
            timeout = params["database_timeout"]
            servers[item["name"]] = PostgresTarget(_postgres(item, timeout), login, timeout, item["url_variable"] or "")
    return servers


def image_checkers() -> ImageCheckers:
    """Return what looks at a database image, by engine."""
    return {"sqlite": SqliteDatabase("image", "/", 0).check_image, "postgresql": check_dump}


def pause_spec() -> Dict[str, Any]:
    """Return the options that say how the application is kept from writing."""
    argv = {"type": "list", "elements": "str", "default": []}
    options = {
        "kind": {"type": "str", "choices": sorted(KINDS), "required": True},
        "begin": argv,
        "end": argv,
        "check": argv,
        "seconds": {"type": "int", "default": 60},
    }
    return {
        "pause": {"type": "dict", "options": options},
        "require_pause": {"type": "bool", "default": False},
        "state_dir": {"type": "path"},
    }


_PAUSE_PARTS = {
    ("hook", "begin"): "pauses writes",
    ("hook", "end"): "resumes writes",
    ("stop", "begin"): "stops the application",
    ("stop", "end"): "starts the application",
}


def build_pause(params: Dict[str, Any], clock: Optional[Clock] = None) -> Optional[CommandPause]:
    """Return the pause that the parameters describe, None where there is none. Raises :class:`OpskitError` for a wrong one."""
    pause, state_dir = params["pause"], params["state_dir"]
    if not pause:
        if params["require_pause"]:
            raise OpskitError("a pause is required, but none is described", "require_pause", "Describe one, or do without")
        return None
    for part in ("begin", "end"):
        if not any(pause[part]):
            raise OpskitError(f"{part} is empty", "pause", f"Name the program that {_PAUSE_PARTS[pause['kind'], part]}, with its arguments")
    for part in ("begin", "end", "check"):
        if pause[part] and not pause[part][0]:
            raise OpskitError(f"{part} begins with an empty word", "pause", "Name the program first, then its arguments")
    require_range({"pause.seconds": pause["seconds"]}, "pause.seconds", 1, 3600)
    if not state_dir:
        raise OpskitError("a pause needs the folder that its record is kept in", "state_dir", "Name one that survives a reboot")
    require_absolute(state_dir)
    return CommandPause(pause["kind"], pause["begin"], pause["end"], pause["check"], pause["seconds"], state_dir, clock or Clock())


def backup_set(params: Dict[str, Any], clock: Clock) -> BackupSet:
    """Return the operation of the module backup_set."""
    require_range(params, "unchanged_interval", 0)
    require_range(params, "shrink_limit", 0, 100)
    require_range(params, "compression_level", 1, 19)
    options = Options(
        unchanged_interval_s=params["unchanged_interval"],
        shrink_limit=params["shrink_limit"],
        compression_level=params["compression_level"],
        verify=params["verify"],
        lock_timeout_s=params["lock_timeout"],
        collection=COLLECTION,
        require_pause=params["require_pause"],
        key_variables=tuple(params["key_variables"]),
    )
    pause = build_pause(params, clock)
    return BackupSet(build_store(params), build_source(params), options, clock, _adopt(params), image_checkers(), pause)


def _adopt(params: Dict[str, Any]) -> Callable[[str, str], DatabaseSource]:
    """Return what makes a database of a file that the description does not name."""
    return lambda name, path: SqliteDatabase(name, path, params["database_timeout"])


def backup_verify(params: Dict[str, Any], clock: Clock) -> VerifySets:
    """Return the operation of the module backup_verify."""
    return VerifySets(build_store(params), params["set"], params["level"], clock, image_checkers(), params["lock_timeout"])


def backup_restore(params: Dict[str, Any], clock: Clock) -> Restore:
    """Return the operation of the module backup_restore."""
    require_absolute(params["state_dir"])
    options = RestoreOptions(
        which=params["set"] or "latest",
        state=params["state"],
        state_dir=params["state_dir"],
        owner=params["owner"],
        credentials=params["credentials"],
        lock_timeout_s=params["lock_timeout"],
    )
    source, servers = build_source(params), build_servers(params)
    return Restore(build_store(params), source, options, clock, image_checkers(), servers, _adopt(params))


def build_row_targets(params: Dict[str, Any]) -> Dict[str, RowTarget]:
    """Return where chosen rows come back to, by the name of the database in a set."""
    servers, timeout = build_servers(params), params["database_timeout"]
    targets: Dict[str, RowTarget] = {}
    for item in params["databases"]:
        name = item["name"]
        if item["engine"] == "postgresql":
            targets[name] = PostgresRows(_postgres(item, timeout), servers[name])
        else:
            targets[name] = SqliteRows(_sqlite(item, timeout))
    return targets


def backup_restore_scope(params: Dict[str, Any], clock: Clock) -> RestoreScope:
    """Return the operation of the module backup_restore_scope."""
    require_absolute(params["state_dir"])
    scopes = read_scopes(params["scopes"], [item["name"] for item in params["databases"]])
    scope, value = find_scope(scopes, params["scope"]), params["value"] or ""
    scope.check_value(value)
    options = ScopeOptions(
        which=params["set"] or "latest",
        value=value,
        policy=params["policy"],
        state_dir=params["state_dir"],
        owner=params["owner"],
        key_variables=params["key_variables"],
        lock_timeout_s=params["lock_timeout"],
    )
    source, targets = build_source(params), build_row_targets(params)
    return RestoreScope(build_store(params), source, scope, options, clock, image_checkers(), targets, _adopt(params))


def drill_spec() -> Dict[str, Any]:
    """Return the options that only a drill has."""
    argv = {"type": "list", "elements": "str", "default": []}
    return {
        "set": {"type": "str", "default": "latest"},
        "drill_dir": {"type": "path", "required": True},
        "state_dir": {"type": "path", "required": True},
        "units": {"type": "list", "elements": "str", "required": True},
        "checks": {"type": "list", "elements": "dict", "required": True},
        "environment": {"type": "dict", "default": {}},
        "owner": {"type": "str"},
        "schema_command": argv,
        "migrate_command": argv,
        "start_timeout": {"type": "int", "default": 60},
        "seconds": {"type": "int", "default": 3600},
    }


def backup_drill(params: Dict[str, Any], clock: Clock) -> Drill:
    """Return the operation of the module backup_drill."""
    for name in ("drill_dir", "state_dir"):
        require_absolute(params[name])
    require_range(params, "start_timeout", 1)
    require_range(params, "seconds", 60)
    folder = os.path.realpath(params["drill_dir"])
    live = build_source(params)
    servers = {
        item["name"]: Server(item["database"] or item["name"], item["os_user"] or "postgres", item["url_variable"] or "")
        for item in params["databases"]
        if item["engine"] == "postgresql"
    }
    options = DrillOptions(
        which=params["set"] or "latest",
        folder=folder,
        state_dir=os.path.realpath(params["state_dir"]),
        units=[unit for unit in params["units"] if unit],
        owner=params["owner"] or "",
        environment=_drill_environment(params["environment"]),
        health=_health(params["checks"], params["start_timeout"]),
        schema_command=params["schema_command"],
        migrate_command=params["migrate_command"],
        start_timeout_s=params["start_timeout"],
        seconds=params["seconds"],
        lock_timeout_s=params["lock_timeout"],
    )
    copy = build_source(_below(params, live, files_below(folder)))
    return Drill(build_store(params), live, copy, servers, options, clock, image_checkers(), _adopt(params))


def _below(params: Dict[str, Any], live: Source, top: str) -> Dict[str, Any]:
    """Return the options that describe an application of which every path lies below another root directory."""
    databases = [{**item, "path": top + os.path.realpath(item["path"]) if item["path"] else item["path"]} for item in params["databases"]]
    return {
        **params,
        "paths": {name: top + path for name, path in live.targets.items()},
        "projects": top + live.projects if live.projects else None,
        "logs": [top + path for path in live.logs],
        "volatile": [top + path for path in live.volatile],
        "databases": databases,
    }


def _drill_environment(values: Dict[str, Any]) -> Dict[str, str]:
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or "\n" in str(value):
            raise OpskitError(
                f"{name} is no variable, or its value has more than one line", "environment", "Correct it; nothing was touched"
            )
    return {name: str(value) for name, value in values.items()}


def _health(checks: List[Dict[str, Any]], deadline_s: int) -> Dict[str, Any]:
    """Return the options of the module health_check for waiting until checks pass. Raises :class:`OpskitError` for wrong ones."""
    if not checks:
        raise OpskitError(
            "nothing says when the application works", "checks", "Describe it (application_ready_url or application_smoke_checks)"
        )
    # Seen twice in a row is enough for what nobody uses, and soon, because the time until then is what is measured.
    options = {"checks": [{"success_threshold": 2, **check} for check in checks], "mode": "until", "interval": 0.2, "deadline": deadline_s}
    validated = ArgumentSpecValidator(HEALTH).validate(options)
    if validated.error_messages:
        raise OpskitError(validated.error_messages[0], "checks", "Correct it; nothing was touched")
    return dict(validated.validated_parameters)


def backup_set_info(params: Dict[str, Any], _clock: Clock) -> SetInfo:
    """Return the operation of the module backup_set_info."""
    require_range(params, "limit", 1)
    scopes = [
        Shape(scope.name, scope.paths, scope.database, list(dict.fromkeys(rows.table for rows in scope.rows)))
        for scope in read_scopes(params["scopes"], None).values()
    ]
    path, table = params["path"] or "", params["table"] or ""
    question = Question(params["set"], params["contents"], params["projects"], path, table, params["limit"], scopes)
    return SetInfo(build_store(params), question, params["lock_timeout"])


def backup_diff(params: Dict[str, Any], _clock: Clock) -> Diff:
    """Return the operation of the module backup_diff."""
    require_range(params, "limit", 1)
    options = DiffOptions(
        which=params["set"] or "latest",
        other=params["other"] or "live",
        path=params["path"] or "",
        content=params["content"],
        limit=params["limit"],
        lock_timeout_s=params["lock_timeout"],
    )
    return Diff(build_store(params), build_source(params), options, build_servers(params), _adopt(params))


def backup_prune(params: Dict[str, Any], clock: Clock) -> Prune:
    """Return the operation of the module backup_prune. Raises :class:`OpskitError` for a policy that keeps nothing."""
    for name in Policy._fields:
        require_range(params, name, 0)
    policy = Policy(params["daily"], params["weekly"], params["monthly"])
    if max(policy) == 0:
        raise OpskitError("daily, weekly and monthly are all 0", todo="Keep at least one; nothing was touched")
    return Prune(build_store(params), policy, params["delete_more_than_half"], clock, params["lock_timeout"])
