#!/usr/bin/env python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the checks of this tree in order, all of them also after a failure, and close with the counts.

    gates.py [PART ...]     the parts are the functions marked @part below; without a name, all that exist in the tree

Each check's output is kept in build/log/ and shown when it fails. What this machine could not check (a Python that is
missing, a skipped test) is listed at the end; with CI=true in the environment it counts as failed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import collection
import coverage

ROOT, COPY = collection.ROOT, collection.COPY
BUILD = ROOT / "build"
LOG = BUILD / "log"
HOME = BUILD / "home"  # nothing is read from or left in the user's own
TOOLS = BUILD / "venv/tools/bin"
E2E = BUILD / "venv/e2e/bin"
LAB = BUILD / "venv/lab/bin"
LAB_FOLDER = BUILD / "lab"  # keys and settings of the lab's hosts
LAB_INVENTORY = COPY / "molecule/inventory.yml"

TARGET_PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
UNITS_PYTHONS = ("3.8", "3.13")
COVERAGE_PERCENT = 90
COMMAND_SECONDS = 1800  # far above what any takes; a test that hangs ends as a failure
UNITS_SECONDS = 2 * COMMAND_SECONDS  # two Pythons, one after the other
STORE_SECONDS = 4 * COMMAND_SECONDS  # thousands of faults, each with a backup and a restore after it

# Warnings that an operator is meant to see and a test provokes: regular expressions, each with its reason beside it.
EXPECTED_WARNINGS: tuple[str, ...] = (
    "on the same file system",  # the end-to-end tests keep their stores beside the data
)


@dataclass
class Part:
    name: str
    run: Callable[[], None]
    folder: str
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0


PARTS: dict[str, Part] = {}
NOT_CHECKED: list[str] = []
current: Part


def part(folder: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a part, which exists when its folder does."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        PARTS[function.__name__] = Part(function.__name__, function, folder)
        return function

    return register


def pythons() -> list[str]:
    """Folders of pyenv's interpreters; its shims refuse the versions that are not switched on."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    return [str(path) for minor in TARGET_PYTHONS for path in sorted(versions.glob(f"{minor}.*/bin"))]


SEARCH = [*pythons(), os.environ["PATH"]]


def environment(bin_folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTEST_", "PYTHON"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(bin_folder), *SEARCH]),
        "HOME": str(HOME),
        "NO_COLOR": "1",
        "MYPYPATH": f"{BUILD}:{COPY}/examples/gateway:{COPY}/tests/tools:{COPY}/tests/shared",
        "ANSIBLE_COLLECTIONS_PATH": str(BUILD),
        # Facts as top-level variables go away in ansible-core 2.24. Embedded templates stay allowed, because only then are they warned
        # of, which fails the part; switched off, one inside a string is compared as it stands and nothing is said.
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "OPSKIT_LAB": str(LAB_FOLDER),
        "OPSKIT_LAB_INVENTORY": str(LAB_INVENTORY),
    }


def report(title: str, problem: str, passed: int | None = None, failed: int = 0, seconds: float = 0.0) -> None:
    """Count one check, or the tests in it where it has some, and say how it went."""
    current.passed += int(not problem) if passed is None else passed
    current.failed += max(failed, 1) if problem else 0
    print(f"  {'FAILED' if problem else 'ok':6} {title} ({seconds:.0f} s)", flush=True)
    if problem:
        print("    " + problem.replace("\n", "\n    "), flush=True)


def command(
    title: str, *argv: object, cwd: Path = COPY, bin_folder: Path = TOOLS, deadline: int = COMMAND_SECONDS, **extra: str
) -> tuple[bool, str, float]:
    """Run one command to its end or deadline; its output goes to a log. Returns success, the output and seconds."""
    log = LOG / f"{current.name}-{re.sub('[^a-z0-9]+', '-', title.lower())}.log"
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env={**environment(bin_folder), **extra},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(deadline)
        except subprocess.TimeoutExpired:
            out.write(f"\nStopped: not finished after {deadline} s\n".encode())
            status = -1
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
            except ProcessLookupError:
                pass
    return status == 0, log.read_text(errors="replace"), time.monotonic() - started


def tail(output: str) -> str:
    lines = output.rstrip().splitlines()
    return "\n".join([f"({len(lines) - 150} lines above are in {LOG})"] * (len(lines) > 150) + lines[-150:])


def check(title: str, *argv: object, refuse: str = r"(?!)", cwd: Path = COPY, collections: str = str(BUILD)) -> bool:
    """One command is one check: it fails by its exit status or by a line that matches ``refuse``.

    :param collections: where Ansible finds collections
    """
    success, output, seconds = command(title, *argv, cwd=cwd, ANSIBLE_COLLECTIONS_PATH=collections)
    bad = "\n".join(line for line in output.splitlines() if re.search(refuse, line))
    report(title, "" if success and not bad else bad or tail(output) or "no output, but a failing exit status", seconds=seconds)
    return success and not bad


def warnings_in(output: str) -> str:
    """Lines with a warning or deprecation of Ansible that no test is meant to provoke."""
    lines = [line for line in output.splitlines() if re.search(r"\[(DEPRECATION )?WARNING\]", line)]
    return "\n".join(sorted({line for line in lines if not any(re.search(known, line) for known in EXPECTED_WARNINGS)}))


def skipped_by_ansible_test(output: str) -> None:
    for line in output.splitlines():
        if re.match("WARNING: (Skipping|Required)", line) and f"{current.name}: {line[9:]}" not in NOT_CHECKED:
            NOT_CHECKED.append(f"{current.name}: {line[9:]}")


def tests(title: str, junit: Iterable[Path], success: bool, output: str, seconds: float) -> None:
    """Count what the JUnit files of a test run hold; a run without a single test has failed."""
    cases = [case for path in junit for case in ElementTree.parse(path).iter("testcase")]
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    skipped = 0
    for case in cases:
        reason = case.find("skipped")
        if reason is not None:
            skipped += 1
            NOT_CHECKED.append(f"{current.name}: {case.get('classname')}.{case.get('name')}: {reason.get('message')}")
    problem = "" if success and cases else tail(output)
    passed = len(cases) - failed - skipped
    report(f"{title}: {passed} of {len(cases)} tests", problem, passed, failed, seconds)


def pytest(title: str, folder: str, bin_folder: Path, *options: str, deadline: int = COMMAND_SECONDS, table: str = "") -> None:
    """Run the tests of a folder.

    :param table: where those that count faults write what they counted
    """
    junit, ansible_log = LOG / f"{current.name}.xml", LOG / f"{current.name}-ansible.log"
    junit.unlink(missing_ok=True)
    ansible_log.unlink(missing_ok=True)
    argv = [bin_folder / "python", "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={junit}", *options, folder]
    success, output, seconds = command(
        title, *argv, bin_folder=bin_folder, deadline=deadline, ANSIBLE_LOG_PATH=str(ansible_log), OPSKIT_FAULT_MATRIX=table
    )
    tests(title, [junit] if junit.exists() else [], success, output, seconds)
    if ansible_log.exists():  # every ansible-playbook that the tests started has written to it
        report("no warning or deprecation from Ansible", warnings_in(ansible_log.read_text(errors="replace")))


def in_tree(*names: str) -> list[str]:
    return [name for name in names if (COPY / name).exists()]


def mypy(bin_folder: Path, *folders: str) -> None:
    """Check the types in those folders that hold Python, with the libraries of one environment."""
    sources = [COPY.relative_to(BUILD) / name for name in folders if any((COPY / name).rglob("*.py"))]
    if sources:
        settings = ["--config-file", COPY / "pyproject.toml", "--python-executable", bin_folder / "python"]
        check(f"mypy {folders[0]}", "mypy", *settings, *sources, cwd=BUILD)


@part("plugins")
def lint() -> None:
    check("ruff check", "ruff", "check", "--no-cache", ".")
    check("ruff format", "ruff", "format", "--no-cache", "--diff", ".")
    mypy(TOOLS, "plugins", "tests/unit", "tests/repo", "tests/tools")
    mypy(E2E, "examples", "tests/e2e", "tests/bench")
    mypy(LAB, "molecule", "tests/lab")
    check("vermin", "vermin", "-t=3.8-", "--violations", "--no-tips", "plugins")
    # examples/awx calls modules of collections that the e2e environment has.
    others = next((BUILD / "venv/e2e/lib").glob("python3.*/site-packages"))
    check(
        "ansible-lint",
        "ansible-lint",
        "--offline",
        "--nocolor",
        "--strict",
        "--exclude",
        "tests/output",
        collections=f"{BUILD}:{others}",
    )


@part("meta")
def docs() -> None:
    check(
        "antsibull-docs",
        "antsibull-docs",
        "lint-collection-docs",
        "--plugin-docs",
        "--validate-collection-refs",
        "all",
        "--skip-rstcheck",
        ".",
    )
    check("antsibull-changelog", "antsibull-changelog", "lint")
    check("ansible-builder", "ansible-builder", "introspect", BUILD)
    artifact = LOG / "artifact"
    shutil.rmtree(artifact, ignore_errors=True)
    artifact.mkdir()
    if check("galaxy build", "ansible-galaxy", "collection", "build", "--output-path", artifact, COPY):
        importer = ["python", "-m", "galaxy_importer.main", next(artifact.glob("*.tar.gz"))]
        check("galaxy-importer", *importer, refuse="^(WARNING|ERROR)", cwd=artifact)


@part("tests/repo")
def specs() -> None:
    pytest("roles, action group and metadata", "tests/repo", TOOLS)


@part("plugins")
def sanity() -> None:
    success, output, seconds = command("ansible-test", "ansible-test", "sanity", "--requirements", "--python", "default")
    skipped_by_ansible_test(output)
    done = len(re.findall("^Running sanity test", output, re.MULTILINE))
    problem = "" if success and done else tail(output)
    report(f"ansible-test sanity: {done} tests", problem, done - bool(done and problem), seconds=seconds)


@part("tests/unit/plugins")
def units() -> None:
    found = [version for version in UNITS_PYTHONS if shutil.which(f"python{version}", path=os.pathsep.join([str(TOOLS), *SEARCH]))]
    NOT_CHECKED.extend(f"units: Python {version} is not installed" for version in UNITS_PYTHONS if version not in found)
    found = found or [f"{sys.version_info.major}.{sys.version_info.minor}"]
    for folder in ("junit", "coverage"):
        shutil.rmtree(COPY / "tests/output" / folder, ignore_errors=True)
    targets = [f"--target-python=venv/{version}" for version in found]
    success, output, seconds = command(
        "ansible-test", "ansible-test", "units", "--requirements", "--coverage", *targets, deadline=UNITS_SECONDS
    )
    skipped_by_ansible_test(output)
    tests("ansible-test units on Python " + " and ".join(found), COPY.glob("tests/output/junit/*.xml"), success, output, seconds)
    covered()


def covered() -> None:
    """Merge the coverage of all Pythons; a file that no test has imported counts with all its lines."""
    with (LOG / "coverage.txt").open("w") as out:
        data = coverage.Coverage(data_file=str(LOG / "coverage.data"), config_file=False, branch=True)
        data.combine([str(path) for path in (COPY / "tests/output/coverage").glob("*=coverage.*")], keep=True)
        sources = [str(path) for folder in ("module_utils", "modules") for path in (COPY / "plugins" / folder).rglob("*.py")]
        data.get_data().touch_files(sources)
        data.exclude('if __name__ == "__main__":')
        percent = data.report(include=sources, show_missing=True, skip_covered=True, file=out)
    missing = f"{(LOG / 'coverage.txt').read_text()}{COVERAGE_PERCENT} % is the least."
    report(f"coverage {percent:.1f} % of lines and branches", "" if percent >= COVERAGE_PERCENT else missing)


@part("tests/integration/targets")
def integration() -> None:
    success, output, seconds = command("ansible-test", "ansible-test", "integration", "--requirements", "--python", "default")
    skipped_by_ansible_test(output)
    done = len(re.findall(r"^Running \S+ integration test", output, re.MULTILINE))
    problem = "" if success and done else tail(output)
    report(f"ansible-test integration: {done} targets", problem, done - bool(done and problem), seconds=seconds)
    report("no warning from Ansible", warnings_in(output))


@part("examples/gateway/tests")
def gateway() -> None:
    pytest("pytest", "examples/gateway/tests", E2E)


@part("tests/e2e")
def e2e() -> None:
    # A playbook waits for one process after the other; two files of tests at a time use what is left.
    pytest("pytest", "tests/e2e", E2E, "--numprocesses=2", "--dist=loadfile")


@part("molecule")
def lab() -> None:
    """Every scenario of molecule/ on the lab's hosts, which stay for the next run: make lab-down removes them."""
    create = ["ansible-playbook", "-i", LAB_INVENTORY, "molecule/default/create.yml"]
    success, output, seconds = command("create", *create, bin_folder=LAB)
    report("hosts", "" if success else tail(output), seconds=seconds)
    if not success:
        return
    report("no warning from Ansible", warnings_in(output))
    for path in sorted(COPY.glob("molecule/*/molecule.yml")):
        if path.parent.name != "default":  # which is the hosts
            scenario(path.parent.name)
    if any(COPY.glob("tests/lab/test_*.py")):
        pytest("pytest", "tests/lab", LAB)


def scenario(name: str) -> None:
    # What an earlier run knew of the hosts may be wrong by now, and molecule would leave out steps by it.
    state = LAB_FOLDER / "molecule"
    shutil.rmtree(state, ignore_errors=True)
    argv = ["molecule", "test", f"--scenario-name={name}", "--destroy=never"]
    success, output, seconds = command(
        name, *argv, bin_folder=LAB, MOLECULE_EPHEMERAL_DIRECTORY=str(state), MOLECULE_COMMAND_BORDERS="false"
    )
    problem = rehearsal(output) or warnings_in(output) if success else tail(output)
    report(f"molecule {name}: {seconds / 60:.1f} minutes", problem, seconds=seconds)


def rehearsal(output: str) -> str:
    """Say where check mode did not tell the truth: it counts on each host what the run after it changes, and then nothing.

    By the recaps that Ansible prints at the end of molecule's steps.
    """
    recaps: dict[str, list[dict[str, int]]] = {}
    for step in re.split(r"^INFO +\[(?=\S+ > \S+\] Executing$)", output, flags=re.MULTILINE)[1:]:
        hosts = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) ", step, re.MULTILINE)
        recaps.setdefault(step.split()[2].rstrip("]"), []).append({host: int(changed) for host, changed in hosts})
    first, *later = recaps["check"]
    (run,) = recaps["converge"]
    if first != run or not any(run.values()):
        return f"changes on each host: the check before it foretold {first}, the run made {run}"
    if not later or any(any(recap.values()) for recap in later):
        return f"changes on each host that a check foretold after the run: {later}"
    return ""


@part("tests/unit")
def store() -> None:
    """The tests of the store, and of what works on it, in the size of `make soak`; in the usual one they are among the units."""
    table = LOG / "fault-matrix.txt"
    table.unlink(missing_ok=True)
    folders = [f"tests/unit/plugins/module_utils/{room}" for room in ("_application", "_backup")]
    # They import the collection by its name, as ansible-test lets them.
    pytest("pytest", folders[0], TOOLS, f"--override-ini=pythonpath={BUILD}", folders[1], deadline=STORE_SECONDS, table=str(table))
    if table.exists():
        print("    " + table.read_text().rstrip().replace("\n", "\n    "), flush=True)
    else:
        report("the fault matrix", "no table was written")


SOAK_ONLY = ("store",)


def main() -> int:
    global current
    LOG.mkdir(parents=True, exist_ok=True)
    unknown = [name for name in sys.argv[1:] if name not in PARTS]
    if unknown:
        print(f"No such part: {' '.join(unknown)}. Parts: {' '.join(PARTS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_args: sys.exit(143))  # so that the running check is stopped, too
    collection.main()
    seed_pip()
    os.chdir(COPY)
    wanted = sys.argv[1:] or [name for name in PARTS if name not in SOAK_ONLY]
    chosen = [PARTS[name] for name in PARTS if name in wanted and in_tree(PARTS[name].folder)]
    for current in chosen:
        print(current.name, flush=True)
        started = time.monotonic()
        current.run()
        current.seconds = time.monotonic() - started

    passed, failed = sum(one.passed for one in chosen), sum(one.failed for one in chosen)
    if NOT_CHECKED:
        print("\nNot checked on this machine:")
        print("\n".join(f"  {line}" for line in NOT_CHECKED))
        if os.environ.get("CI") == "true":
            print("  CI counts each of them as failed.")
            failed += len(NOT_CHECKED)
    print(f"\n{'part':12} {'passed':>7} {'failed':>7} {'minutes':>8}")
    for one in chosen:
        print(f"{one.name:12} {one.passed:7} {one.failed:7} {one.seconds / 60:8.1f}")
    counts = f"{passed} passed, {failed} failed"
    (BUILD / "counts").write_text(counts + "\n")
    print(f"\n{counts}")
    return 1 if failed or not passed else 0


def seed_pip() -> None:
    """Give ansible-test the pip of each interpreter, where it would otherwise download get-pip.py from a host of its own."""
    cache = HOME / ".ansible/test/cache/get_pip_24_2.py"  # the name that ansible-test of 2.19 looks for
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(
        "import subprocess, sys\n"
        'packages = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]\n'
        'subprocess.run([sys.executable, "-m", "ensurepip"], check=True)\n'
        'subprocess.run([sys.executable, "-m", "pip", "install", *packages], check=True)\n'
    )


if __name__ == "__main__":
    sys.exit(main())
