# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo as README.md starts it, and as a user without root on a machine without zstd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import COLLECTION

NOBODY = 65534
SAID = (
    "ready: no",
    "is back, the application is ready: yes",
    "the same to the bit, mode and nanosecond",
    "the live ones went on, untouched",
    "writes that it acknowledged before the backup are there",
    "Done in",
)
WITHOUT_ZSTD = "zstd is not installed, so gzip compresses"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="opskit-demo-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def run_demo(folder: Path, search: list[str], as_user: list[str]) -> str:
    """Run examples/demo/run of a copy of the collection; returns what it said."""
    copy = folder / "ansible_collections/opskit/runbooks"
    shutil.copytree(COLLECTION, copy, ignore=shutil.ignore_patterns(".git", "output", "__pycache__"), dirs_exist_ok=True)
    if as_user:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "XDG_"))}
    env.update(
        PATH=os.pathsep.join(search),
        HOME=str(folder / "home"),
        TMPDIR=str(folder),
        ANSIBLE_COLLECTIONS_PATH=str(folder),
        ANSIBLE_HOME=str(folder / "home/.ansible"),
        ANSIBLE_REMOTE_TMP=str(folder / "home/.ansible/tmp"),  # Ansible looks for the user's home in /etc/passwd
    )
    done = subprocess.run(
        [*as_user, copy / "examples/demo/run"],
        cwd=copy,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert [sentence for sentence in SAID if sentence not in done.stdout] == []
    return done.stdout


def endings_of_objects(folder: Path) -> set[str]:
    return {path.suffix for path in (folder / "demo/store/objects").rglob("*.*")}


def test_demo(folder: Path) -> None:
    said = run_demo(folder, [os.path.dirname(sys.executable), os.environ["PATH"]], [])
    assert WITHOUT_ZSTD not in said
    assert endings_of_objects(folder) == {".zst"}


def path_without_zstd(folder: Path) -> str:
    """Make a folder with every program of the usual places but zstd's."""
    programs = folder / "programs"
    programs.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for path in Path(place).glob("*"):
            if "zstd" not in path.name and not os.path.lexists(programs / path.name):
                (programs / path.name).symlink_to(path)
    return str(programs)


def environment_for_all(folder: Path, as_user: list[str]) -> str:
    """Make an environment with Ansible that the user may run, because root's own often may not be; returns its bin folder.

    It holds copies of the libraries, and whichever Python of the same version that user may run.
    """
    libraries = folder / "libraries"
    shutil.copytree(sysconfig.get_paths()["purelib"], libraries, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (os.path.realpath(sys.executable), f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        binaries = folder / "venv/bin"
        if subprocess.run([*as_user, python, "-c", ""], capture_output=True, check=False).returncode != 0:
            continue
        subprocess.run([python, "-m", "venv", "--without-pip", "--symlinks", folder / "venv"], check=True)
        (folder / f"venv/lib/{version}/site-packages/shared.pth").write_text(f"{libraries}\n")
        (binaries / "ansible-playbook").write_text(f"#!{binaries}/python\nfrom ansible.cli.playbook import main\nmain()\n")
        (binaries / "ansible-playbook").chmod(0o755)
        return str(binaries)
    pytest.skip(f"a user without root can run no {version} here")


def test_demo_as_a_plain_user_without_zstd(folder: Path) -> None:
    as_user: list[str] = []
    if os.geteuid() == 0:
        # setpriv itself still has root's capabilities when it looks for the program; what env starts has none.
        as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", "env"]
    said = run_demo(folder, [environment_for_all(folder, as_user), path_without_zstd(folder)], as_user)
    assert WITHOUT_ZSTD in said
    assert endings_of_objects(folder) == {".gz"}
    assert "zstd is not installed on this host, so new objects are compressed with gzip" in (folder / "demo/1-backup.log").read_text()
    assert (folder / "demo/gateway/.env").stat().st_uid == (NOBODY if as_user else os.geteuid())
