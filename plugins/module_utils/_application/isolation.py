# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A place on the host in which the application runs on a copy, cut off from everything live: mounts and network of its own.

systemd makes it: each process of a drill is one of a unit that lies in /run and is told by its name, so that whoever comes later
finds and ends what a killed run has left. A reboot takes all of it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

from .._core.command import CommandError, last_words, run
from .._core.errors import OpskitError

T = TypeVar("T")

UNITS = "/run/systemd/system"
"""Where units lie that a reboot takes (systemd.unit(5), table 1). Its being there says that systemd runs (sd_booted(3))."""

SYSTEMCTL_S = 60
LOOK_S = 20
CLONE_NEWNET = 0x40000000
NAMESPACE_STATUS = ("225", "226")
"""How a process ends whose namespaces could not be made: EXIT_NETWORK and EXIT_NAMESPACE of systemd.exec(5)."""

NOTIFY = "/run/systemd/notify"
"""The one live socket that is left: a service says there that it is ready, and systemd takes it from the service's own unit alone."""

OWN = ("/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm")
"""Folders that are empty and of its own in a unit that is cut off."""

# What a copy of a unit does not have. It must start, stop, own and remove nothing that the live unit or anything else of the host has:
# RemoveIPC= and RuntimeDirectory= would remove it under the live one when the copy stops, files named in Standard*= are opened
# before the unit has mounts of its own, and the paths below would open again what is closed.
_LEFT_OUT = re.compile(
    r"(Restart|StartLimit|FailureAction|SuccessAction|RebootArgument|Exec(Stop|StopPost|Reload|Condition)$|PIDFile"
    r"|Slice|Delegate|PAMName|Utmp|TTY|Standard(Input|Output|Error)|Log(Namespace|sDirectory)|SyslogIdentifier"
    r"|(Runtime|State|Cache|Configuration)Directory|RuntimeMax|Timeout|Watchdog|OpenFile|Kill|SendSIG|FinalKillSignal"
    r"|ReadWritePaths|ReadWriteDirectories|Private(Network|Tmp|IPC|Mounts)|ProtectSystem|(Network|IPC|User)NamespacePath|RemoveIPC)"
)
_EXEC = re.compile(r"Exec(Start|StartPre|StartPost)$")
_REFUSED = ("RootDirectory", "RootImage", "BusName", "Sockets")

_DIRECTORIES = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "LogsDirectory": "/var/log"}

# Runs in a unit that is cut off, and says what can be seen there.
_LOOK = """
import json, os, signal, socket, sys

what = json.load(sys.stdin)


def place(path):
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_dev, state.st_ino]


def reaches(address):
    # For a datagram, connect(2) asks the routes and sends nothing.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True


with open("/proc/net/unix") as stream:
    names = [line.split()[7] for line in stream if len(line.split()) > 7]
print(json.dumps({
    "interfaces": sorted(name for _number, name in socket.if_nameindex()),
    "reached": [address for address in what["addresses"] if reaches(address)],
    "abstract": [name for name in names if name.startswith("@")],
    "places": {path: place(path) for path in what["paths"]},
}), flush=True)
if what["stay"]:
    signal.pause()
"""

# Documentation's own networks (RFC 5737, RFC 3849): nobody is there, but a way to them is a way out.
_OUTSIDE = ("192.0.2.1", "2001:db8::1")


class Bind(NamedTuple):
    """A file or folder that is seen in the place of another one."""

    source: str
    target: str


def unit_lines(text: str) -> Iterator[Tuple[str, str, str]]:
    """Yield section, name and value of each line of a unit file (systemd.syntax(7)); continued lines are one."""
    section, begun = "", ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        line, begun = begun + line.strip(), ""
        if line.endswith("\\"):
            begun = line[:-1] + " "
        elif line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line:
            name, _equals, value = line.partition("=")
            yield section, name.strip(), value.strip()


def word(text: str) -> str:
    """Return a text as one word of a unit's line: quoted, with what systemd would replace doubled."""
    escaped = re.sub(r'(["\\])', r"\\\1", text).replace("\n", "\\n")
    return '"' + escaped.replace("%", "%%") + '"'


def command_line(argv: Sequence[str]) -> str:
    """Return a command as a unit's ``ExecStart=``: no variable is replaced in it."""
    return " ".join(word(one).replace("$", "$$") for one in argv)


def service_lines(text: str, unit: str, place_of: Callable[[str], str]) -> List[str]:
    """Return what a copy of a service has of it. Raises :class:`OpskitError` for one that can't be cut off.

    :param text: as ``systemctl cat`` shows it
    :param unit: the service's name
    :param place_of: the copy's path of one of the application's files; any other path as it is
    """
    stem = unit.rpartition(".")[0]
    own = {"n": unit, "N": stem, "p": stem.partition("@")[0], "P": stem.partition("@")[0], "%": "%%"}
    lines = []
    for section, name, value in unit_lines(text):
        if section != "Service" or _LEFT_OUT.match(name):
            continue
        if name in _REFUSED and value:
            raise OpskitError(f"it sets {name}, and can't be cut off with that", unit, "Describe the application by a unit without it")
        # The name is another one now; what was made of it stays.
        value = re.sub("%([nNpP%])", lambda found: own[found.group(1)], value)
        if _EXEC.match(name) and re.match(r"[@:!|-]*[+]", value):
            if name == "ExecStart":
                raise OpskitError("ExecStart= begins with +, which nothing cuts off", unit, "Describe the application by a unit without it")
            continue
        if name == "EnvironmentFile" and value:
            # systemd reads it before the unit has mounts of its own.
            dash = "-" if value.startswith("-") else ""
            value = dash + place_of(value[len(dash) :])
        lines.append(f"{'BindReadOnlyPaths' if name == 'BindPaths' else name}={value}")
    return lines


def hidden_lines(paths: Sequence[str]) -> List[str]:
    """Return the lines that make files and folders inaccessible, where they are."""
    return [f"InaccessiblePaths={word('-' + path)}" for path in paths]


def listening() -> List[str]:
    """Return the paths of all sockets that processes of this host can be reached at."""
    found = set()
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            path = line.rstrip("\n").split(None, 7)[7:]
            if path and path[0].startswith("/"):
                found.add(path[0])
    return sorted(found)


def is_in(path: str, folders: Sequence[str]) -> bool:
    """True when a path is one of some folders or lies below one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


class Room:
    """The units of one drill.

    :param folder: what tells this drill's units from those of others; they have nothing else to do with it
    :param seconds: after which systemd ends every one of them, whatever became of who started it
    """

    def __init__(self, folder: str, seconds: int) -> None:
        self.folder = folder
        self.seconds = seconds
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(folder))[:40]
        self.prefix = f"opskit-drill-{plain}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}-"
        self.holder = f"{self.prefix}network.service"
        self.binds: List[Bind] = []
        self.hidden: List[str] = []

    @staticmethod
    def require() -> None:
        """Raise :class:`OpskitError` where nothing can be cut off. Whether it is, is looked at when it should be."""
        if os.geteuid() != 0:
            raise OpskitError("only root can cut an application off", "backup_drill", "Run with become")
        if not os.path.isdir(UNITS) or shutil.which("systemctl") is None:
            raise OpskitError(
                "systemd does not run here, and a drill is cut off by it from everything live", UNITS, "Drill on a host with systemd"
            )

    def name(self, unit: str) -> str:
        """Return the name of the copy of a unit."""
        return self.prefix + unit

    # writing ----------------------------------------------------------------------------------------

    def _unit(self, name: str, lines: Sequence[str]) -> str:
        """Return a whole unit that is cut off."""
        shared = [] if name == self.holder else [f"JoinsNamespaceOf={self.holder}", f"After={self.holder}"]
        own = [
            f"RuntimeMaxSec={self.seconds}",
            "Restart=no",
            "KillMode=control-group",
            "SendSIGKILL=yes",
            "TimeoutStopSec=10",
            "SyslogIdentifier=opskit-drill",
            "PrivateNetwork=yes",
            "PrivateIPC=yes",
            "PrivateTmp=yes",
            "PrivateMounts=yes",
            "ProtectSystem=strict",
            "ReadOnlyPaths=-/home -/root",
            "NoNewPrivileges=yes",
            "RestrictNamespaces=yes",
            # Who is root in it is not root of the host.
            "CapabilityBoundingSet=~CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_RAWIO CAP_SYS_TIME CAP_KILL CAP_NET_ADMIN",
            "TemporaryFileSystem=/run /dev/shm:mode=1777",
            f"BindReadOnlyPaths={NOTIFY}",
            *(f"BindPaths={word(bind.source)}:{word(bind.target)}" for bind in self.binds),
            *hidden_lines(self.hidden),
        ]
        first = [f"TimeoutStartSec={self.seconds}"]
        return "\n".join(["[Unit]", f"Description=Restore drill, {name}", *shared, "[Service]", *first, *lines, *own, ""])

    def write(self, units: Mapping[str, Sequence[str]]) -> None:
        """Have systemd know units, by name, with what they have beside being cut off."""
        for name, lines in units.items():
            path = os.path.join(UNITS, name)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "w", encoding="utf-8") as stream:
                stream.write(self._unit(name, lines))
        systemctl("daemon-reload")

    def start(self, name: str, deadline_s: float) -> None:
        """Start a unit, and return when systemd says that it runs, or has come to its end. Raises :class:`OpskitError`."""
        try:
            systemctl("start", name, deadline_s=deadline_s)
        except CommandError:
            raise self.failed(name) from None

    def failed(self, name: str) -> OpskitError:
        """Return what to say of a unit that does not run."""
        seen = show(name, "Result", "ExecMainStatus")
        if seen.get("ExecMainStatus") in NAMESPACE_STATUS:
            return OpskitError(
                f"this host gives no mount and network namespaces of their own to a unit ({self._words(name)})",
                name,
                "Drill on a host, or in a container, that allows them (in a container: CAP_SYS_ADMIN)",
            )
        return OpskitError(
            f"it does not run: {seen.get('Result')}, exit code {seen.get('ExecMainStatus')}: {self._words(name)}",
            name[len(self.prefix) :],
            "Mend what it names, on this host or in the application",
        )

    def require_running(self, name: str) -> None:
        """Raise :class:`OpskitError`, with its last words, for a unit that has come to its end."""
        if show(name, "ActiveState").get("ActiveState") not in ("active", "activating", "reloading"):
            raise self.failed(name)

    @staticmethod
    def _words(name: str) -> str:
        argv = ["journalctl", f"--unit={name}", "--output=cat", "--no-pager", "--lines=30"]
        said = run(argv, SYSTEMCTL_S, ok=(0, 1)).stdout.decode("utf-8", errors="replace").splitlines()
        # systemd's own words come with each unit that fails.
        own = [line for line in said if not re.match(rf"(Starting|Started|Stopped|Failed to start|{re.escape(name)}: )", line)]
        return last_words("\n".join(own or said).encode())

    # looking ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the network, empty, and see that it is. Raises :class:`OpskitError` where it can't be had."""
        self._look(self.holder, stay=True)

    def require_apart(self) -> None:
        """See from inside that with the mounts as they are now nothing live can be met. Raises :class:`OpskitError`."""
        self._look(f"{self.prefix}look.service", stay=False)

    def _look(self, name: str, stay: bool) -> None:
        answer = os.path.join(self.folder, name + ".json")
        live = {path: place for path in [*listening(), *(bind.target for bind in self.binds)] for place in [place_of(path)] if place}
        copies = {bind.target: place_of(bind.source) for bind in self.binds}
        what = {"addresses": [*_OUTSIDE, *addresses()], "paths": sorted({*live, *copies}), "stay": stay}
        question = os.path.join(self.folder, name + ".in")
        with open(question, "w", encoding="utf-8") as stream:
            json.dump(what, stream)
        argv = [sys.executable, "-I", "-S", "-c", _LOOK]
        streams = [f"StandardInput=file:{question}", f"StandardOutput=truncate:{answer}"]
        self.write({name: [f"Type={'exec' if stay else 'oneshot'}", f"ExecStart={command_line(argv)}", *streams]})
        self.start(name, LOOK_S)
        deadline = time.monotonic() + LOOK_S
        seen: Optional[Dict[str, Any]] = None
        while seen is None:
            try:
                with open(answer, encoding="utf-8") as stream:
                    seen = json.load(stream)
            except (FileNotFoundError, ValueError):
                if time.monotonic() > deadline:
                    raise self.failed(name) from None
                time.sleep(0.02)
        wrong = breaches(seen, live, copies)
        if wrong:
            raise OpskitError(
                f"the drill would not be cut off on this host: {wrong}; nothing of the application was started",
                name,
                "Drill on another host",
            )

    def in_network(self, work: Callable[[], T]) -> T:
        """Return what a function gives that is called in the drill's network; so are the threads that it starts."""
        pid = show(self.holder, "MainPID")["MainPID"]
        found: List[T] = []
        failures: List[BaseException] = []

        def enter() -> None:
            try:
                handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"/proc/{pid}/ns/net")
                finally:
                    os.close(handle)
                found.append(work())
            except BaseException as error:
                failures.append(error)

        # A thread of its own, which ends: this one stays where it is (setns(2)).
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return found[0]

    # ending -----------------------------------------------------------------------------------------

    def units(self) -> List[str]:
        """Return the drill's units that systemd knows, or has a file of."""
        listed = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", f"{self.prefix}*").split("\n")
        names = {line.split()[0] for line in listed if line.split()}
        return sorted(names.union(name for name in os.listdir(UNITS) if name.startswith(self.prefix)))

    def close(self) -> None:
        """End every unit of the drill, whoever started it, and remove it."""
        units = self.units()
        if not units:
            return
        # Those that systemd does not have any more are no failure, nor is one that has no process.
        systemctl("kill", "--signal=KILL", *units, ok=(0, 1, 5))
        systemctl("stop", *units, ok=(0, 1, 5))
        for name in units:
            path = os.path.join(UNITS, name)
            if os.path.lexists(path):
                os.unlink(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", f"{self.prefix}*", ok=(0, 1))


def breaches(seen: Dict[str, Any], live: Dict[str, List[int]], copies: Dict[str, Optional[List[int]]]) -> str:
    """Say what of a host can still be met from a place that should be cut off; empty when nothing can.

    :param seen: what was found inside
    :param live: device and inode of what is live, by path
    :param copies: device and inode of what should be there in its place
    """
    if seen["interfaces"] != ["lo"]:
        return f"it has the network interfaces {', '.join(seen['interfaces'])}"
    if seen["reached"]:
        return f"it has a route to {seen['reached'][0]}"
    if seen["abstract"]:
        return f"it meets the socket {seen['abstract'][0]}"
    for path, place in sorted(seen["places"].items()):
        if path in copies:
            if place is None or place != copies[path]:
                return f"{path} is not the copy there"
        elif path != NOTIFY and place == live[path]:
            return f"it meets the live {path}"
    return ""


def place_of(path: str) -> Optional[List[int]]:
    """Return device and inode of what a path leads to, None where nothing is."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_dev, state.st_ino]


def addresses() -> List[str]:
    """Return the host's addresses of version 4 that are not of the loopback (proc(5), fib_trie)."""
    try:
        with open("/proc/net/fib_trie", encoding="ascii") as stream:
            text = stream.read()
    except FileNotFoundError:
        return []
    found = set(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", text))
    return sorted(address for address in found if not address.startswith("127."))


def directories(seen: Dict[str, str]) -> Dict[str, str]:
    """Return the folders that systemd makes for a unit, a path by the name of the line that asks for it.

    :param seen: properties of the unit as ``systemctl show`` has them
    """
    return {
        f"{kind}/{name}": f"{base}/{name}"
        for kind, base in _DIRECTORIES.items()
        for name in (x.split(":")[0] for x in seen.get(kind, "").split())
    }


def systemctl(*words: str, deadline_s: float = SYSTEMCTL_S, ok: Sequence[int] = (0,)) -> str:
    """Run systemctl and return what it says. Raises :class:`CommandError`."""
    return run(["systemctl", *words], deadline_s, ok=ok).stdout.decode("utf-8", errors="replace")


def show(unit: str, *properties: str) -> Dict[str, str]:
    """Return properties of a unit."""
    lines = systemctl("show", f"--property={','.join(properties)}", "--", unit).splitlines()
    return {name: value for name, _equals, value in (line.partition("=") for line in lines)}
