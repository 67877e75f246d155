# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store on disk: where things lie, and the few ways in which they come and go."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import uuid
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Set

from .._core import command
from .._core.clock import Clock, parse_rfc3339, rfc3339
from .._core.errors import OpskitError
from .._core.files import fsync_dir, hash_file, make_dir, publish, publish_json, read_json, remove_tree
from . import archive
from .errors import BackupError
from .locks import READER, Locks
from .manifest import STALE, VERSION, Manifest, Record, dump_records, load_records

FORMAT = "opskit-backup-store"
SET_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}\Z")
FOLDERS = ("objects", "sets", "proofs", "bad", "trash", "tmp", "cache")
LEVELS = ("none", "stored", "content", "drill")
"""How far a set was proven, in rising order."""
VERIFIED = ("content", "drill")
"""The levels from which on a set counts: for retention, and as one that an operator does not name."""

README = """\
This is a backup store of the application "{application}".

Restore by hand, with sh, tar, zstd (or gzip) and sha256sum alone:
    ls {store}/sets                             the sets, named by their UTC time
    cd {store}/sets/<set>
    sha256sum --strict --check SHA256SUMS       is everything there and whole?
    less restore.sh                             what it will do
    sh restore.sh /some/empty/folder            everything of the set, one folder for each saved path

objects/  archives and database images, named by the SHA-256 of their bytes; never changed, shared by sets; a *.delta.* is what differs
          from the whole image that its set names too
sets/     one folder a set: manifest.json, SHA256SUMS, restore.sh, and files.jsonl.*: a line for each file of each archive; one that
          says "stale" is of an old copy, which does not count
proofs/   what each verification found; the newest decides
bad/      objects that failed a verification
trash/    what pruning took out; emptied after 24 hours
cache/    may be removed at any time; the next backup then reads every file again

Remove nothing by hand: an object that looks old may belong to the newest set.
"""


class Proof(NamedTuple):
    """The newest verdict on a set."""

    level: str
    """One of :data:`LEVELS`; ``none`` when there is no proof."""
    ok: bool
    time: Optional[datetime]
    failures: List[Dict[str, str]]
    """Each with ``object`` and ``reason``."""


NO_PROOF = Proof("none", True, None, [])


def stands(before: Proof, level: str, failures: List[Dict[str, str]]) -> bool:
    """True when a verdict is not changed by a weaker look that found nothing: it takes nothing away from a stronger one.

    What only a drill sees, only a drill takes back: for a set that failed one, it is not enough that its content is whole.
    """
    return not failures and (before.ok or before.level == "drill") and LEVELS.index(level) < LEVELS.index(before.level)


class Store:
    """One application's store. Making the object reads nothing; see :meth:`open` and :meth:`create`.

    :param lock_dir: a folder for the locks, where those on the store's own files are not to be relied on
    """

    def __init__(self, path: str, application: str, lock_dir: str = "") -> None:
        self.path = os.path.realpath(path)
        self.application = application
        self.locks = Locks(self.path, lock_dir)
        self.uuid = ""

    def at(self, *parts: str) -> str:
        """Return a path inside the store."""
        return os.path.join(self.path, *parts)

    def exists(self) -> bool:
        """True when there is a store here; an empty folder is none, nor is what a run left that died while making one."""
        if not os.path.isdir(self.path):
            if os.path.lexists(self.path):
                raise BackupError("the store has to be a folder, but something else is here", self.path, "Name another place")
            return False
        if os.path.exists(self.at("FORMAT")):
            return True
        names = [name for name in os.listdir(self.path) if name not in ("lock", "lost+found", "README.txt") and ".tmp." not in name]
        if any(name not in FOLDERS or os.listdir(self.at(name)) for name in names):
            raise BackupError("this folder is not empty and holds no backup store", self.path, "Name another place")
        return False

    def open(self) -> None:
        """Check that this is a store of this format and application. Raises :class:`BackupError`."""
        if not self.exists():
            raise BackupError("there is no backup store here", self.path, "Mend the path, or make a first backup")
        value = read_json(self.at("FORMAT"))
        if not isinstance(value, dict) or value.get("format") != FORMAT or not value.get("uuid"):
            raise BackupError("the file FORMAT is not that of a backup store", self.path, "Name another place")
        if value.get("version") != VERSION:
            raise BackupError(
                f"the store is of format {value.get('version')}, this collection reads {VERSION}",
                self.path,
                "Use the version of the collection that wrote it, or a newer one",
            )
        if value.get("application") != self.application:
            raise BackupError(
                f"the store belongs to the application {value.get('application')}, not to {self.application}",
                self.path,
                "Give each application a store of its own",
            )
        self.uuid = value["uuid"]

    def create(self) -> None:
        """Make the store if it is not there; then open it."""
        make_dir(self.path)
        for name in FOLDERS:
            make_dir(self.at(name))
        if not self.exists_format():
            with publish(self.at("README.txt")) as stream:
                stream.write(os.fsencode(README.format(application=self.application, store=shlex.quote(self.path))))
            publish_json(
                self.at("FORMAT"),
                {"format": FORMAT, "version": VERSION, "application": self.application, "uuid": str(uuid.uuid4())},
            )
        self.open()

    def exists_format(self) -> bool:
        """True when the store's format is written down."""
        return os.path.exists(self.at("FORMAT"))

    # locks ----------------------------------------------------------------------------------------

    def require_locks(self) -> None:
        """Refuse a store on a file system whose locks are not to be relied on; takes none. Raises :class:`BackupError`."""
        self.locks.require()

    def require_owner(self) -> None:
        """Refuse to write to a store of another user."""
        if os.stat(self.path).st_uid != os.geteuid() and os.geteuid() != 0:
            raise BackupError("the store belongs to another user", self.path, "Run as that user (become)")

    @contextmanager
    def writer(self, wait_s: float) -> Iterator[None]:
        """Be the only one that makes or deletes sets."""
        self.require_locks()
        make_dir(self.path)
        self.require_owner()
        with self.locks.writer(wait_s):
            yield

    def reading(self, set_id: str, wait_s: float, make: bool = True) -> ContextManager[bool]:
        """Keep a set from being deleted while the block runs. Gives False when it is not there any more.

        :param make: whether a file may be made for that
        """
        return self.locks.reader(set_id, self.at("sets", set_id, "manifest.json"), wait_s, make)

    def held(self, which: str, wait_s: float, locks: ExitStack, make: bool = True) -> Manifest:
        """Find a set and keep it from being deleted for as long as the locks are held.

        :param which: as :meth:`find` takes it
        :param make: whether a file may be made for that
        """
        while True:
            found = self.find(which)
            # One that was pruned at this moment is not found again.
            if locks.enter_context(self.reading(found.id, wait_s, make)):
                return found

    def claim(self, set_id: str, make: bool = True) -> ContextManager[bool]:
        """Keep readers away from a set while the block runs. Gives False when one is at work on it."""
        return self.locks.claim(set_id, self.at("sets", set_id, "manifest.json"), make)

    def scratch(self, parent: str) -> ContextManager[str]:
        """Have a folder in ``tmp`` or ``cache`` for a reader's plain images, which no writer sweeps while the block runs."""
        return self.locks.scratch(self.at(parent))

    # sets -----------------------------------------------------------------------------------------

    def sets(self) -> List[Manifest]:
        """Return all sets, oldest first by seq. Raises :class:`BackupError` when one can't be read."""
        if not os.path.isdir(self.at("sets")):
            return []
        found = []
        for name in filter(SET_ID.match, os.listdir(self.at("sets"))):
            try:
                found.append(self.manifest(name))
            except BackupError:
                # Pruned since its name was read.
                if os.path.lexists(self.at("sets", name)):
                    raise
        return sorted(found, key=lambda manifest: manifest.seq)

    def manifest(self, set_id: str) -> Manifest:
        """Return one set's manifest."""
        path = self.at("sets", set_id, "manifest.json")
        missing = BackupError(f"there is no set {set_id}", self.path, "List the sets with backup_set_info")
        if not SET_ID.match(set_id) or not os.path.isdir(os.path.dirname(path)):
            raise missing
        try:
            manifest = Manifest.from_json(read_json(path), path)
            if manifest.id != set_id:
                raise BackupError(f"it says that it is set {manifest.id}", path)
            return manifest
        except (OSError, OpskitError) as error:
            if not os.path.isdir(os.path.dirname(path)):
                # Pruned meanwhile.
                raise missing from None
            # A set gets its name with its manifest in it, so where that is missing, somebody has taken it away.
            raise BackupError(
                f"the manifest of set {set_id} can't be read ({error.what if isinstance(error, OpskitError) else error.strerror})",
                path,
                "Move the folder of this set out of the store and run again; other sets do not need it",
            ) from None

    def find(self, which: str) -> Manifest:
        """Return the set that an operator names.

        :param which: an id, ``latest`` (the newest verified one), or ``before <UTC time>`` (the newest verified one that
            is older)
        """
        if which.strip() == "before":
            raise BackupError(
                "no time stands behind it",
                which,
                "Write before 2026-11-23T02:00:00Z as one value; for -e as JSON, because a space ends a value",
            )
        if which != "latest" and not which.startswith("before "):
            return self.manifest(which)
        limit = None
        if which != "latest":
            text = which[len("before ") :].strip()
            try:
                limit = parse_rfc3339(text)
            except ValueError:
                raise BackupError(f"{text!r} is no UTC time", todo="Write it as 2026-11-23T02:00:00Z") from None
        for manifest in reversed(self.sets()):
            proof = self.proof(manifest.id)
            if proof.ok and proof.level in VERIFIED and (limit is None or manifest.time < limit):
                return manifest
        raise BackupError(
            f"there is no verified set{f' before {rfc3339(limit)}' if limit else ''}",
            self.path,
            "Verify one (backup_verify), or name a set by its id",
        )

    def require_restorable(self, manifest: Manifest) -> None:
        """Refuse a set that failed its verification, or of which something is missing or damaged, as far as a quick look tells.

        Raises :class:`BackupError`.
        """
        proof = self.proof(manifest.id)
        if not proof.ok:
            reason = proof.failures[0]["reason"] if proof.failures else "no reason was recorded"
            raise BackupError(f"set {manifest.id} failed its verification: {reason}", self.path, "Name another set")
        for name, size in manifest.objects.items():
            if not self.has_object(name, size):
                raise BackupError(
                    f"set {manifest.id} needs object {name}, which is missing or has another size",
                    self.path,
                    "Name another set",
                )
        self.require_whole(manifest)

    def require_whole(self, manifest: Manifest) -> None:
        """Raise :class:`BackupError` for a set whose own files are not what was written, or that was made for another store."""
        damage = self.set_damage(manifest)
        if damage:
            raise BackupError(f"set {manifest.id} is damaged: {damage[0]}", self.path, "Name another set")

    def file_list(self, manifest: Manifest) -> List[Record]:
        """Return the lines of what a set holds, each path once."""
        return [value for value in self.members(manifest) if STALE not in value]

    def members(self, manifest: Manifest) -> List[Record]:
        """Return a set's file list, its hash checked: a line for each member of each shard, the stale ones among them."""
        path = self.list_path(manifest.id)
        if hash_file(path) != manifest.files:
            raise BackupError("the file list is damaged (its hash is not the recorded one)", path, "Use another set")
        with archive.open_object(path) as stream:
            data = stream.read()
        return load_records(data, path)

    def set_damage(self, manifest: Manifest) -> List[str]:
        """Say what is wrong with the files of a set's own folder; reads them, but no object."""
        wrong: List[str] = []
        folder = self.at("sets", manifest.id)
        listed: Dict[str, str] = {}
        try:
            with open(os.path.join(folder, "SHA256SUMS"), encoding="utf-8") as stream:
                for line in stream:
                    value, _spaces, name = line.rstrip("\n").partition("  ")
                    listed[name] = value
            own = {"manifest.json", "restore.sh", os.path.basename(self.list_path(manifest.id))}
            for name in sorted(own):
                if hash_file(os.path.join(folder, name)) != listed.pop(name, ""):
                    wrong.append(f"{name} is not what was written")
        except (FileNotFoundError, ValueError) as error:
            return [f"SHA256SUMS can't be read ({error})"]
        if listed != {f"../../objects/{name[:2]}/{name}": name.split(".")[0] for name in manifest.objects}:
            wrong.append("SHA256SUMS lists other objects than the manifest")
        if manifest.store != self.uuid or manifest.application != self.application:
            wrong.append("it was made for another store")
        return wrong

    def list_path(self, set_id: str) -> str:
        """Return where a set's file list lies."""
        for codec in (archive.ZSTD, archive.GZIP):
            path = self.at("sets", set_id, f"files.jsonl.{codec.ending}")
            if os.path.exists(path):
                return path
        raise BackupError("the file list of the set is missing", self.at("sets", set_id), "Use another set")

    def publish_set(self, manifest: Manifest, records: List[Record], codec: archive.Codec, restore_script: str) -> Manifest:
        """Write the set's folder and give it its name: from then on the set exists. Returns the manifest as written."""
        folder = self.at("tmp", manifest.id)
        os.mkdir(folder, 0o700)
        name = f"files.jsonl.{codec.ending}"
        done = subprocess.run(command.bound(codec.compress(3, 0)), input=dump_records(records), stdout=subprocess.PIPE, check=True)
        sums = {}

        def put(name: str, data: bytes) -> None:
            with publish(os.path.join(folder, name)) as stream:
                stream.write(data)
            sums[name] = hashlib.sha256(data).hexdigest()

        put(name, done.stdout)
        manifest = manifest._replace(files=sums[name])
        publish_json(os.path.join(folder, "manifest.json"), manifest.as_json())
        sums["manifest.json"] = hash_file(os.path.join(folder, "manifest.json"))
        put("restore.sh", restore_script.encode("utf-8", "surrogateescape"))
        for item in sorted(manifest.objects):
            sums[f"../../objects/{item[:2]}/{item}"] = item.split(".")[0]
        put("SHA256SUMS", b"".join(f"{value}  {key}\n".encode() for key, value in sorted(sums.items())))
        os.rename(folder, self.at("sets", manifest.id))
        fsync_dir(self.at("sets"))
        return manifest

    # objects --------------------------------------------------------------------------------------

    def object_path(self, name: str) -> str:
        """Return where an object lies."""
        return self.at("objects", name[:2], name)

    def has_object(self, name: str, size: int) -> bool:
        """True when the object is there with the bytes that were recorded for it."""
        try:
            return os.stat(self.object_path(name)).st_size == size
        except FileNotFoundError:
            return False

    def whole_object(self, name: str) -> str:
        """Return the path of an object that holds the bytes that it is named by. Raises :class:`BackupError` for any other."""
        path = self.object_path(name)
        if hash_file(path) != name.split(".")[0]:
            raise BackupError(f"object {name} is damaged (its hash is not its name)", self.path, "Name another set")
        return path

    def adopt(self, path: str, kind: str, suspects: Set[str]) -> str:
        """Move a finished, fsynced file of tmp/ to its place among the objects, named by its hash; returns its name.

        :param suspects: names of objects that failed a verification; one of the same name goes to bad/ first
        """
        name = f"{hash_file(path)}.{kind}"
        target = self.object_path(name)
        make_dir(os.path.dirname(target))
        size = os.stat(path).st_size
        if os.path.lexists(target) and (name in suspects or os.stat(target).st_size != size):
            os.rename(target, self.at("bad", f"{name}.{uuid.uuid4().hex[:8]}"))
        # Where the same bytes are there already, they are simply put there again.
        os.rename(path, target)
        fsync_dir(os.path.dirname(target))
        return name

    def sweep(self) -> None:
        """Remove what an interrupted run left. Only for the one writer."""
        for name in os.listdir(self.at("tmp")):
            if not name.startswith(READER):
                remove_tree(self.at("tmp", name))
        self.sweep_readers()

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Remove what killed readers left, before the block and after it: at first, a child of theirs may still be dying."""
        self.sweep_readers()
        yield
        self.sweep_readers()

    def sweep_readers(self) -> None:
        """Remove what readers left that were killed. For anybody."""
        for parent in ("tmp", "cache"):
            if os.path.isdir(self.at(parent)):
                self.locks.sweep(self.at(parent))

    # proofs ---------------------------------------------------------------------------------------

    def proof(self, set_id: str) -> Proof:
        """Return the newest verdict on a set."""
        folder = self.at("proofs", set_id)
        path = folder
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
            if not names:
                return NO_PROOF
            path = os.path.join(folder, names[-1])
            value = read_json(path)
            failures = [{"object": str(item["object"]), "reason": str(item["reason"])} for item in value["failures"]]
            return Proof(LEVELS[LEVELS.index(value["level"])], bool(value["ok"]), parse_rfc3339(value["time"]), failures)
        except FileNotFoundError:
            # None was made, or the set is being pruned.
            return NO_PROOF
        except (OpskitError, KeyError, TypeError, ValueError) as error:
            raise BackupError(f"this proof is damaged ({error})", path, "Remove it and verify the set again") from None

    def verified(self, set_id: str) -> bool:
        """True when the newest proof says that the set's content is what was backed up."""
        proof = self.proof(set_id)
        return proof.ok and proof.level in VERIFIED

    def write_proof(
        self, set_id: str, level: str, failures: List[Dict[str, str]], clock: Clock, read: int, measured: Optional[Dict[str, Any]] = None
    ) -> None:
        """Record a verification, unless the verdict before stands (:func:`stands`).

        :param read: how many objects were read; those that an earlier proof vouches for do not count
        :param measured: what else was learned, by name
        """
        folder = self.at("proofs", set_id)
        with self.locks.proofs(self.at("proofs")):
            make_dir(folder)
            before = self.proof(set_id)
            if stands(before, level, failures):
                return
            names = os.listdir(folder)
            for name in names:
                if ".tmp." in name:
                    # Its process was killed before it gave it its name.
                    os.unlink(os.path.join(folder, name))
            now = clock.now()
            # An earlier clock must not make the newer verdict the older one, nor must one that was removed.
            number = max([int(name[:6]) for name in names if name[:6].isdigit()], default=0) + 1
            value: Dict[str, Any] = {
                "set": set_id,
                "level": level,
                "ok": not failures,
                "time": rfc3339(now),
                "failures": failures,
                "objects_read": read,
                **(measured or {}),
            }
            publish_json(os.path.join(folder, f"{number:06d}-{now.strftime('%Y%m%dT%H%M%SZ')}.json"), value)

    def suspects(self) -> Set[str]:
        """Return the names of the objects that a set's newest proof found damaged, and that no later proof found whole."""
        verdicts = [(manifest, self.proof(manifest.id)) for manifest in self.sets()]
        found: Set[str] = set()
        for _manifest, bad in verdicts:
            if not bad.failures:
                continue
            healed: Set[str] = set()
            for manifest, good in verdicts:
                if good.ok and good.time and bad.time and good.time > bad.time and LEVELS.index(good.level) >= LEVELS.index(bad.level):
                    healed.update(manifest.objects)
            found.update(failure["object"] for failure in bad.failures if failure["object"] not in healed)
        return found - {""}

    # cache ----------------------------------------------------------------------------------------

    def read_cache(self) -> Dict[str, Dict[str, str]]:
        """Return the fingerprints of what was read last; empty when they are lost, which costs reading it again."""
        try:
            value = read_json(self.at("cache", "fingerprints.json"))
        except (FileNotFoundError, OpskitError):
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            return {}
        return value

    def write_cache(self, value: Dict[str, Dict[str, str]]) -> None:
        """Keep the fingerprints."""
        publish_json(self.at("cache", "fingerprints.json"), value)
