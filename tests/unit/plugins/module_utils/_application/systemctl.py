# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of systemctl as a drill asks of it, where no systemd runs: services are children without namespaces.

Units lie in $UNITS. In place of mounts, a path that would be bound is replaced by its source in the commands. What a live unit is, says
``live.service`` in the folder above. Every call is written down in ``calls`` there.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

UNITS = Path(os.environ["UNITS"])
TOP = UNITS.parent


def values(name: str) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, _equals, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


def argv_of(line: str, binds: List[str]) -> List[str]:
    pairs = [shlex.split(bind)[0].split(":", 1) for bind in binds]
    argv = [word.replace("\\n", "\n").replace("$$", "$").replace("%%", "%") for word in shlex.split(line)]
    for source, target in sorted(pairs, key=lambda pair: -len(pair[1])):
        # Not in what already is a path of the copy.
        argv = [word if source in word else word.replace(target, source) for word in argv]
    return argv


def start(name: str) -> int:
    unit = values(name)
    user = unit.get("User", [""])[-1]
    prefix: List[str] = ["setsid"]
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        prefix += ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/"}
    for path in unit.get("EnvironmentFile", []):
        for line in Path(path).read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals:
                environment[key] = value.strip('"')
    output: Any = subprocess.DEVNULL
    log = open(TOP / f"{name}.log", "ab")
    if "StandardOutput" in unit:
        output = open(unit["StandardOutput"][-1].partition(":")[2], "wb")
    binds = unit.get("BindPaths", [])
    for line in unit.get("ExecStartPre", []):
        if subprocess.call([*prefix, *argv_of(line, binds)], env=environment, stdout=log, stderr=log, cwd="/"):
            return finish(name, 1)
    argv = [*prefix, *argv_of(unit["ExecStart"][-1], binds)]
    given = open(unit["StandardInput"][-1].partition(":")[2], "rb") if "StandardInput" in unit else subprocess.DEVNULL
    process = subprocess.Popen(argv, env=environment, stdin=given, stdout=output, stderr=log, cwd="/")
    (TOP / f"{name}.pid").write_text(str(process.pid))
    if unit["Type"][-1] == "oneshot":
        return finish(name, process.wait())
    time.sleep(0.15)
    status = process.poll()
    return finish(name, status) if status else 0


def finish(name: str, status: int) -> int:
    (TOP / f"{name}.status").write_text(str(status))
    return 1 if status else 0


def alive(name: str) -> int:
    try:
        pid = int((TOP / f"{name}.pid").read_text())
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            return pid
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def show(name: str) -> None:
    if not name.startswith("opskit-drill-"):
        print((TOP / "live.properties").read_text())
        return
    status = (TOP / f"{name}.status").read_text() if (TOP / f"{name}.status").exists() else "0"
    pid = alive(name)
    print(
        f"MainPID={pid}\nActiveState={'active' if pid else 'failed'}\nExecMainStatus={status}\nResult={'exit-code' if status != '0' else 'success'}"
    )


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--"]
    with open(TOP / "calls", "a") as stream:
        stream.write(json.dumps(words) + "\n")
    verb, names = words[0], [word for word in words[1:] if not word.startswith("--")]
    if verb == "cat":
        if not (TOP / names[0]).exists():
            print(f"No files found for {names[0]}.", file=sys.stderr)
            return 1
        print((TOP / names[0]).read_text())
    elif verb == "start":
        return start(names[0])
    elif verb == "show":
        show(names[0])
    elif verb == "list-units":
        for path in TOP.glob(names[0] + ".pid"):
            print(f"{path.name[:-4]} loaded active running")
    elif verb in ("kill", "stop"):
        for name in names:
            pid = alive(name)
            if pid:
                os.killpg(pid, signal.SIGKILL)
            if verb == "stop":
                for path in TOP.glob(name + ".*"):
                    path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
