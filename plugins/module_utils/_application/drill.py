# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore drill: a set is restored aside, loaded and compared, and the application is started on it, cut off from everything live."""

from __future__ import annotations

import grp
import json
import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, cast

from .._backup import archive, images
from .._backup.create import summary
from .._backup.errors import BackupError
from .._backup.manifest import Image, Manifest
from .._backup.placement import Placement, Served
from .._backup.source import Source, is_below
from .._backup.staging import Staging
from .._backup.store import Store
from .._backup.verify import Failure, ImageCheckers, verify_objects
from .._core.clock import Clock, rfc3339
from .._core.command import CommandError
from .._core.environment import value_of, with_value
from .._core.errors import OpskitError, present
from .._core.files import free_bytes, hash_file, human_size, is_out_of_space, make_dir, remove_tree
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource
from .._health.check import build_checks
from .._health.runner import Unhealthy, health_check
from .._postgresql.cluster import Cluster, Limits, check_host, is_at_fault, require_socket
from .._postgresql.login import missing_driver
from .._postgresql.restore import PostgresTarget
from .isolation import OWN, Bind, Room, command_line, directories, is_in, listening, service_lines, show, systemctl

MARK = "opskit-drill.json"
"""Tells a drill's folder from one that somebody else keeps something in, and what was made outside of it."""

INSIDE = "/run/opskit-drill"
"""Where the throw-away server sees its folder."""

CLUSTER = "postgresql.service"
START_S = 120
"""Seconds in which the throw-away server has to be made and answer."""


class Options(NamedTuple):
    """What is drilled, and how."""

    which: str
    """An id, ``latest`` or ``before <time>``."""
    folder: str
    """Where everything of a drill lies, and nothing else."""
    state_dir: str
    units: List[str]
    owner: str
    """User that the application's commands run as; empty for root."""
    environment: Dict[str, str]
    """What the application's environment file says otherwise on the copy."""
    health: Dict[str, Any]
    """The options of the module ``health_check``."""
    schema_command: List[str]
    migrate_command: List[str]
    start_timeout_s: int
    seconds: int
    """After which systemd ends what a drill has started."""
    lock_timeout_s: float


class Damaged(Exception):
    """What was found speaks against the set.

    :param level: how far a proof has to go that takes it back
    """

    def __init__(self, level: str, failures: List[Failure]) -> None:
        self.level = level
        self.failures = failures
        super().__init__(failures)


class Service(NamedTuple):
    """One unit of the application, as it is on this host."""

    unit: str
    text: str
    uid: int
    gid: int
    folders: Dict[str, str]
    """The folders that systemd makes for it."""


class Server(NamedTuple):
    """What is known of a database in a server."""

    database: str
    os_user: str
    """User that the throw-away server runs as."""
    url_variable: str


class Drill(Operation):
    """Drill one set, and record what came of it.

    :param live: the application as it is described
    :param copy: the same with each path below the drill's folder
    :param servers: the description's databases in servers, by name
    """

    def __init__(
        self,
        store: Store,
        live: Source,
        copy: Source,
        servers: Dict[str, Server],
        options: Options,
        clock: Clock,
        checkers: ImageCheckers,
        adopt: Callable[[str, str], DatabaseSource],
    ) -> None:
        self.store = store
        self.live = live
        self.copy = copy
        self.servers = servers
        self.options = options
        self.clock = clock
        self.checkers = checkers
        self.adopt = adopt
        self.folder = options.folder
        self.room = Room(self.folder, options.seconds)
        self.cores = os.cpu_count() or 1
        self.held = ""
        self.manifest: Optional[Manifest] = None
        self.services: List[Service] = []
        self.started = clock.monotonic()
        self.begun: Optional[datetime] = None
        self.recovery_time_s: Optional[float] = None
        self.phases: Dict[str, float] = {}
        self.failures: List[Failure] = []
        self.seen: List[Check] = []
        self.warnings: List[str] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.started, self.begun = self.clock.monotonic(), self.clock.now()
        self.store.open()
        self.store.require_locks()
        self.store.require_owner()
        self.room.require()
        make_dir(self.options.state_dir)
        with ExitStack() as locks:
            locks.enter_context(flock(os.path.join(self.options.state_dir, "drill.lock"), wait_s=self.options.lock_timeout_s))
            self._require_own_folder()
            self._sweep()
            self.held = self.store.held(self.options.which, self.options.lock_timeout_s, locks).id
            with self.store.swept():
                yield

    # plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self.store.open()
        self.store.require_locks()
        self.room.require()
        self._require_own_folder()
        manifest = self.manifest = self.store.manifest(self.held) if self.held else self.store.find(self.options.which)
        build_checks(self.options.health, False)
        self.services = [self._service(unit) for unit in self.options.units]
        if not self.services:
            raise OpskitError(
                "nothing says which systemd units serve the application, and only what systemd starts can be cut off from what is live",
                "units",
                "Name them (application_units, with application_service_manager systemd)",
            )
        plan = Plan("drilled")
        reason = f"set {manifest.id}"
        need = 0
        for name in sorted(manifest.roots):
            size = sum(shard.bytes for shard in manifest.shards if shard.root == name)
            need += size
            plan.add("stage", name, reason, size)
        for image in manifest.databases:
            images.require_memory(image)
            need += images.disk_to_unpack(image)
            if image.file:
                plan.add("stage", f"database {image.name}", reason, images.disk_to_unpack(image))
                continue
            self._require_server(image)
            need += int(image.facts["database_bytes"])
            plan.add("load", f"database {image.name}", reason, image.facts["database_bytes"])
            plan.add("compare", f"database {image.name}", "every row and definition, amcheck of every table and index")
        free = free_bytes(self.folder)
        if need > free:
            raise OpskitError(
                f"the restored copy needs {human_size(need)} here, {human_size(free)} are free",
                self.folder,
                "Free space here, or name another folder for the drill",
            )
        for service in self.services:
            plan.add("start", service.unit, "on the copy, cut off from everything live")
        plan.add("record proof", manifest.id, "what the drill finds")
        return plan

    def _require_own_folder(self) -> None:
        """Refuse a folder that holds, or could hold, anything but a drill."""
        if os.path.lexists(self.folder):
            real = os.path.isdir(self.folder) and not os.path.islink(self.folder)
            if not real or (os.listdir(self.folder) and not os.path.isfile(os.path.join(self.folder, MARK))):
                raise OpskitError(
                    "this is no folder of a drill, and a drill removes all that is in its own", self.folder, "Name one that does not exist"
                )
        kept = {**self.live.targets, "the store": self.store.path, "the state folder": self.options.state_dir}
        kept.update((f"database {one.name}", one.files()[0]) for one in self.live.databases if one.files())
        for name, path in kept.items():
            if path == self.folder or is_below(self.folder, path) or is_below(path, self.folder):
                raise OpskitError(f"the folder for the drill and {name} ({path}) lie in each other", self.folder, "Name another one")

    def _require_server(self, image: Image) -> None:
        server = self.servers.get(image.name)
        if server is None:
            raise OpskitError(
                f"set {present(self.manifest).id} holds the {image.engine} database {image.name}, which the description does not name",
                self.store.path,
                f"Name {image.name} under databases, with the engine {image.engine}",
            )
        if missing_driver():
            raise OpskitError("this Python can't speak to PostgreSQL", todo=f"Install it: apt-get install {missing_driver()}")
        check_host(server.os_user, image.facts["server_version"])
        require_socket(os.path.join(self.folder, "pg", "s"))

    def _service(self, unit: str) -> Service:
        name = unit if "." in unit.rpartition("@")[2] else f"{unit}.service"
        if not name.endswith(".service"):
            raise OpskitError("this is no service, and only services can be started on a copy", unit, "Name the service itself")
        try:
            text = systemctl("cat", "--", name)
        except CommandError as error:
            raise OpskitError(
                f"this host does not have the unit ({error.what})", name, "Install the application here, without its data"
            ) from None
        service_lines(text, name, str)
        seen = show(name, "User", "Group", "RuntimeDirectory", "StateDirectory", "CacheDirectory", "LogsDirectory")
        try:
            user = pwd.getpwnam(seen["User"]) if seen.get("User") else pwd.getpwuid(0)
            gid = grp.getgrnam(seen["Group"]).gr_gid if seen.get("Group") else user.pw_gid
        except KeyError:
            raise OpskitError(
                f"this host does not have its user {seen.get('User')} or group {seen.get('Group')}",
                name,
                "Install the application here, without its data",
            ) from None
        return Service(name, text, user.pw_uid, gid, directories(seen))

    # apply ----------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        manifest = present(self.manifest)
        level, measured = "drill", {}
        try:
            self._run(manifest)
            measured = {"recovery_time_s": self.recovery_time_s, "recovery_point": rfc3339(manifest.time), "phases": self.phases}
        except Damaged as found:
            level, self.failures = found.level, found.failures
        finally:
            self._sweep()
        self.store.write_proof(manifest.id, level, self.failures, self.clock, len(manifest.objects), measured)

    def _run(self, manifest: Manifest) -> None:
        damage = self.store.set_damage(manifest)
        if damage:
            raise Damaged("content", [{"object": "", "reason": reason} for reason in damage])
        self._make_folder()
        with self.clock.timed(self.phases, "isolate_s"):
            self._hide([])
            self.room.open()
        try:
            placement = self._place(manifest)
            cluster = self._restore(placement)
        except OpskitError as error:
            if not isinstance(error, BackupError):
                raise
            # What keeps it from being restored may be the set or this host. Reading all of the set tells, and names the object.
            failures, _read = verify_objects(self.store, manifest, "content", self.checkers)
            if failures:
                raise Damaged("content", failures) from None
            raise
        self._settle(placement, cluster)
        with self.clock.timed(self.phases, "start_s"):
            self._bind(placement)
            self.room.require_apart()
            self._migrate(manifest)
            self._start()
        self.recovery_time_s = round(self.clock.monotonic() - self.started, 3)

    def _make_folder(self) -> None:
        make_dir(os.path.dirname(self.folder), 0o755)
        os.makedirs(self.folder, exist_ok=True)
        self._mark([])
        # The server's user passes through; what lies in it is closed to others.
        os.chmod(self.folder, 0o711)
        for name in ("files", "empty", "pg"):
            os.mkdir(os.path.join(self.folder, name), 0o700)

    def _mark(self, made: List[str]) -> None:
        with open(os.path.join(self.folder, MARK), "w", encoding="utf-8") as stream:
            json.dump({"made": made}, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def _sweep(self) -> None:
        """Remove everything that a drill of this folder has made, also one that was killed."""
        self.room.close()
        try:
            with open(os.path.join(self.folder, MARK), encoding="utf-8") as stream:
                made = list(json.load(stream)["made"])
        except (FileNotFoundError, ValueError):
            made = []
        for path in reversed(made):
            # Empty, as it was made; nothing else is.
            if os.path.isdir(path) and not os.listdir(path):
                os.rmdir(path)
            elif os.path.isfile(path) and os.stat(path).st_size == 0:
                os.unlink(path)
        if os.path.lexists(self.folder):
            self._empty()

    def _empty(self) -> None:
        # The mark last: a folder without it that is not empty is somebody's else.
        for name in sorted(os.listdir(self.folder), key=lambda name: name == MARK):
            remove_tree(os.path.join(self.folder, name))
        os.rmdir(self.folder)

    def _place(self, manifest: Manifest) -> Placement:
        targets: Dict[str, PostgresTarget] = {}
        self.cluster: Optional[Cluster] = None
        served = [image for image in manifest.databases if not image.file]
        if served:
            server = self.servers[served[0].name]
            major = max(check_host(server.os_user, image.facts["server_version"]) for image in served)
            self.cluster = Cluster(os.path.join(self.folder, "pg"), INSIDE, server.os_user, major)
            for image in served:
                one = self.servers[image.name]
                targets[image.name] = self.cluster.target(image.name, one.database, one.url_variable)
        return Placement(self.store, self.copy, manifest, self.store.members(manifest), "drill", "name", targets, self.adopt)

    def _restore(self, placement: Placement) -> Optional[Cluster]:
        """Put files and databases in their places beside each other, each compared with what was recorded."""
        served, placement.served = placement.served, []

        def stage() -> None:
            with self.clock.timed(self.phases, "stage_s"):
                try:
                    Staging(placement, self.store, self.checkers, b"", durable=False).fill()
                except OSError as error:
                    if is_out_of_space(error):
                        raise OpskitError(
                            "the disk became full while the set was staged", self.folder, "Free space there and run again"
                        ) from None
                    raise

        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [pool.submit(stage)]
            if served:
                jobs.append(pool.submit(self._load, present(self.cluster), served))
            for job in jobs:
                job.result()
        placement.served = served
        return self.cluster

    def _load(self, cluster: Cluster, served: List[Served]) -> None:
        with self.clock.timed(self.phases, "cluster_s"):
            cluster.prepare()
            limits = Limits(images.available_memory(), self.cores)
            name = self.room.name(CLUSTER)
            lines = [
                f"User={cluster.os_user}",
                f"ExecStartPre={command_line(cluster.make())}",
                f"ExecStart={command_line(cluster.serve(limits))}",
            ]
            self.room.write({name: ["Type=exec", *lines, f"BindPaths={cluster.folder}:{INSIDE}"]})
            self.room.start(name, START_S)
            cluster.require_answer(START_S, lambda: self.room.require_running(name))
        for one in served:
            self._load_one(cluster, one)

    def _load_one(self, cluster: Cluster, served: Served) -> None:
        image, folder = served.image, os.path.join(self.folder, "empty", "image")
        # The servers of a drill are all its own.
        target = cast(PostgresTarget, served.target)
        plain, beside = os.path.join(folder, "image"), ""
        os.mkdir(folder, 0o700)
        with self.clock.timed(self.phases, "load_s"):
            images.unpack_whole(self.store, image, plain, folder)
            if image.beside:
                beside = os.path.join(folder, "globals.sql")
                archive.decompress(self.store.object_path(image.beside), beside)
            if hash_file(plain) != image.facts["sha256"]:
                raise BackupError(f"database {image.name} has another hash than was recorded", self.store.path, "Name another set")
            try:
                cluster.load(target, plain, beside, image.facts, self.cores)
            except OpskitError as error:
                if is_at_fault(error):
                    raise self._broken(image, error.what) from None
                raise
            remove_tree(folder)
        with self.clock.timed(self.phases, "compare_s"):
            wrong = cluster.difference(target, image.facts, self.cores)
        if wrong:
            raise self._broken(image, wrong)

    @staticmethod
    def _broken(image: Image, what: str) -> Damaged:
        return Damaged("drill", [{"object": image.object, "reason": f"database {image.name}: {what} (object {image.object})"}])

    def _settle(self, placement: Placement, cluster: Optional[Cluster]) -> None:
        """Give the copy the settings that it runs with here."""
        lines = b""
        for variable, value in self.options.environment.items():
            lines = with_value(lines, variable, value)
        environment = placement.environment
        content = b""
        if environment is not None:
            with open(environment.staged, "rb") as stream:
                content = stream.read()
        settled = content
        for variable, value in self.options.environment.items():
            settled = with_value(settled, variable, value)
        for served in placement.served if cluster is not None else []:
            variable = served.target.url_variable
            if variable:
                settled = present(cluster).settle(
                    cast(PostgresTarget, served.target), settled, f"the environment file of set {placement.manifest.id}"
                )
        if environment is not None and settled != content:
            with open(environment.staged, "r+b") as stream:
                stream.truncate()
                stream.write(settled)
        # For a process that has its settings from elsewhere.
        with open(os.open(self._overlay, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            for served in placement.served:
                url = value_of(settled, served.target.url_variable) if served.target.url_variable else None
                if url is not None and value_of(content, served.target.url_variable) != url:
                    lines = with_value(lines, served.target.url_variable, url)
            stream.write(lines)

    @property
    def _overlay(self) -> str:
        return os.path.join(self.folder, "overlay.env")

    def _live_path(self, path: str) -> str:
        return path[len(files_below(self.folder)) :]

    def _bind(self, placement: Placement) -> None:
        """Settle what the application sees in the place of what is live."""
        binds = {self._live_path(target.live): target.staged for target in placement.targets}
        for placed in placement.placed:
            if placed.stage:
                # SQLite writes beside the file.
                binds[self._live_path(os.path.dirname(placed.live))] = placed.stage
        first = self.services[0]
        for path in self.live.outermost().values():
            if path not in binds and os.path.isdir(path):
                # Described, and not in this set.
                binds[path] = self._own_folder(path, first)
        for path in [*self.live.volatile, *self.live.logs]:
            home = next((one for one in binds if is_below(path, one)), None)
            if home is not None:
                inner = os.path.join(binds[home], os.path.relpath(path, home))
                if not os.path.lexists(inner):
                    self._give(inner, first)
            elif path not in binds and os.path.isdir(path):
                binds[path] = self._own_folder(path, first)
        for service in self.services:
            for path in service.folders.values():
                if not is_in(path, list(binds)):
                    binds[path] = self._own_folder(path, service)
        if self.cluster is not None:
            binds["/run/postgresql"] = self.cluster.sockets
        self._make_mount_points(binds)
        self.room.binds = [Bind(source, target) for target, source in sorted(binds.items())]
        self._hide(list(binds))

    def _hide(self, copied: List[str]) -> None:
        """Settle what of the host is not even to be seen: every live socket, the store, and what the runbooks know of the application.

        :param copied: paths in whose place a copy is seen
        """
        paths = [*listening(), self.store.path, self.options.state_dir]
        self.room.hidden = [path for path in paths if not is_in(path, [*OWN, *copied])]

    def _own_folder(self, path: str, service: Service) -> str:
        """Return an empty folder that is seen in the place of a path."""
        folder = os.path.join(self.folder, "empty", path.strip("/").replace("/", "-"))
        self._give(folder, service)
        return folder

    @staticmethod
    def _give(folder: str, service: Service) -> None:
        os.makedirs(folder, 0o750)
        os.chown(folder, service.uid, service.gid)

    def _make_mount_points(self, binds: Dict[str, str]) -> None:
        """Make what nothing can be mounted on because it is missing, as on a host that has the application without its data."""
        made: List[str] = []
        for path in binds:
            while not os.path.lexists(path) and not is_in(path, OWN) and not any(is_below(path, other) for other in binds):
                made.append(path)
                path = os.path.dirname(path)
        made = sorted(set(made))
        if made:
            self._mark(made)
        for path in made:
            if os.path.isfile(binds.get(path, "")):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            else:
                os.mkdir(path, 0o755)

    def _migrate(self, manifest: Manifest) -> None:
        """Bring the copy to the schema of the release that is installed here. Raises :class:`OpskitError` where that can't be."""
        versions = {str(image.facts["schema_version"]) for image in manifest.databases if image.facts.get("schema_version")}
        if not self.options.schema_command or not versions:
            return
        known = self._command("schema", self.options.schema_command).split()
        unknown = sorted(versions - set(known))
        if unknown:
            raise OpskitError(
                f"set {manifest.id} has the schema {', '.join(unknown)}, which the release on this host does not know: it is newer",
                self.store.path,
                "Drill on a host with the release that the set is from; nothing is said about the set",
            )
        if versions != {known[-1]}:
            if not self.options.migrate_command:
                raise OpskitError(
                    f"set {manifest.id} has the schema {', '.join(sorted(versions))}, which is older than the release on this host needs",
                    self.store.path,
                    "Set application_migrate_command, or drill on a host with the release that the set is from",
                )
            self._command("migrate", self.options.migrate_command)

    def _command(self, name: str, argv: List[str]) -> str:
        """Run a command of the application on the copy, and return what it prints."""
        unit, answer = self.room.name(f"{name}.service"), os.path.join(self.folder, f"{name}.out")
        lines = ["Type=oneshot", f"ExecStart={command_line(argv)}", f"StandardOutput=truncate:{answer}", f"EnvironmentFile={self._overlay}"]
        self.room.write({unit: [*([f"User={self.options.owner}"] if self.options.owner else []), *lines]})
        self.room.start(unit, self.options.seconds)
        with open(answer, encoding="utf-8", errors="replace") as stream:
            return stream.read()

    def _start(self) -> None:
        """Start the application on the copy and wait until it is ready."""
        units = {}
        for service in self.services:
            lines = service_lines(service.text, service.unit, self._place_of)
            lines.append(f"EnvironmentFile={self._overlay}")
            for name, path in service.folders.items():
                variable = {"Runtime": "RUNTIME", "State": "STATE", "Cache": "CACHE", "Logs": "LOGS"}[name.partition("Directory")[0]]
                lines.append(f"Environment={variable}_DIRECTORY={path}")
            units[self.room.name(service.unit)] = [*lines, f"TimeoutStartSec={self.options.start_timeout_s}"]
        self.room.write(units)
        for name in units:
            self.room.start(name, self.options.start_timeout_s + 10)
        health = {**self.options.health, "checks": self._checks(next(iter(units)))}
        try:
            result = self.room.in_network(lambda: health_check(health, False, self.clock))
        except Unhealthy as error:
            for name in units:
                self.room.require_running(name)
            raise OpskitError(
                f"the application did not become ready on the copy within {self.options.start_timeout_s} s: {error.what}",
                error.where,
                "Look what it lacks when it is cut off (see application_drill_env); nothing is said about the set",
            ) from None
        for name in units:
            self.room.require_running(name)
        self.seen = [Check(f"application {one['id']}", one["status"] in ("pass", "warn"), one["message"]) for one in result["checks"]]

    def _place_of(self, path: str) -> str:
        """Return the copy's path of one of the application's files, as it stands in a unit; any other as it is."""
        real = os.path.realpath(path)
        for bind in self.room.binds:
            if is_in(real, [bind.target]):
                return (bind.source + real[len(bind.target) :]).replace("%", "%%")
        return path

    def _checks(self, main_unit: str) -> List[Dict[str, Any]]:
        """Return the checks as they are asked of the copy."""
        names = {service.unit: self.room.name(service.unit) for service in self.services}
        enter = ["nsenter", f"--target={show(main_unit, 'MainPID')['MainPID']}", "--mount", "--net", "--ipc", "--"]
        found: List[Dict[str, Any]] = []
        left_out = set()
        for check in self.options.health["checks"]:
            check = dict(check)
            if check["type"] == "systemd":
                unit = check["unit"] if check["unit"].endswith(".service") else f"{check['unit']}.service"
                if unit not in names:
                    self.warnings.append(f"check {check['id']} is left out: {check['unit']} does not run in a drill")
                    left_out.add(check["id"])
                    continue
                check["unit"] = names[unit]
            elif check["type"] == "command":
                check["argv"] = [*enter, *check["argv"]]
            for name in ("token_file", "ca_file"):
                if check[name]:
                    check[name] = self._place_of(check[name])
            found.append(check)
        for check in found:
            check["depends_on"] = [one for one in check["depends_on"] if one not in left_out]
        return found

    # verify ---------------------------------------------------------------------------------------

    def verify(self) -> List[Check]:
        manifest = present(self.manifest)
        left = [*self.room.units(), *([self.folder] if os.path.lexists(self.folder) else [])]
        recorded = self.store.proof(manifest.id)
        return [
            *self.seen,
            Check("nothing of the drill is left", not left, ", ".join(left)),
            Check("proof recorded", recorded.ok == (not self.failures), manifest.id),
        ]

    def failure(self) -> str:
        if not self.failures:
            return ""
        return (
            f"{self.store.path}: set {present(self.manifest).id} failed the drill, first: {self.failures[0]['reason']}. "
            "It does not count any more. Make a new backup now; it stores again what was damaged."
        )

    def result(self) -> Dict[str, Any]:
        manifest = present(self.manifest)
        return {
            "set": summary(self.store, manifest),
            "recovery_time_s": self.recovery_time_s,
            "recovery_point": rfc3339(manifest.time),
            "recovery_point_age_s": round(((self.begun or self.clock.now()) - manifest.time).total_seconds()),
            "phases": self.phases,
            "failures": self.failures,
            "warnings_": self.warnings,
        }


def files_below(folder: str) -> str:
    """Return the folder that stands for the root directory of the copy."""
    return os.path.join(folder, "files")
