# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is private: it serves the modules of this collection and may change at any time.

from __future__ import annotations


class ModuleDocFragment:
    # Every module that works on a store.
    DOCUMENTATION = r"""
options:
  store:
    description:
      - The backup store, a folder that belongs to one application alone.
    type: path
    required: true
  application:
    description:
      - Name of the application. A store that belongs to another one is refused.
    type: str
    required: true
notes:
  - A set can be restored by hand too, with C(sh), C(tar), C(zstd) and C(sha256sum) alone. C(README.txt) in the store says how.
requirements:
  - GNU tar
  - zstd (without it new objects are compressed by gzip, at about a fifth of the speed)
"""

    # What an application consists of.
    SOURCE = r"""
options:
  paths:
    description:
      - What is saved, absolute paths of folders or files by name.
      - The usual names are V(data), V(environment) (the C(.env) file), V(config) and V(projects).
      - A path that lies inside another one of them is saved once. An empty path means unset.
    type: dict
    required: true
  projects:
    description:
      - The folder with one folder a project. Each project can be restored without reading the others.
      - Default is the path named V(projects) of O(paths).
    type: path
  logs:
    description:
      - Paths of logs. They are saved, but never count as a change, and a restore leaves the live ones where they are.
    type: list
    elements: path
    default: []
  volatile:
    description:
      - Paths of caches, sockets and process ids. They are never saved, and a restore leaves them where they are.
    type: list
    elements: path
    default: []
  database_timeout:
    description:
      - Seconds to wait for a database that is locked.
    type: int
    default: 30
"""

    # What a database is.
    DATABASES = r"""
options:
  databases:
    description:
      - Databases. Each is saved as a consistent image, also while the application writes.
      - An SQLite database below O(paths) that is not named here is saved in the same way, with a warning.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database in a backup.
        type: str
        required: true
      engine:
        description: Database engine.
        type: str
        choices: [sqlite, postgresql]
        required: true
      path:
        description: The file of an SQLite database.
        type: path
      database:
        description: Name of a PostgreSQL database in its server, by default its O(databases[].name).
        type: str
      host:
        description: Name or address of the PostgreSQL server, or the folder of its socket. By default C(/var/run/postgresql).
        type: str
      port:
        description: Port of the PostgreSQL server, by default 5432.
        type: int
      user:
        description: Role to log in with. By default the one that is named like the operating system's user.
        type: str
      passfile:
        description: File on the host with the password, as libpq's C(.pgpass), mode 0600. There is no option for a password itself.
        type: path
      service:
        description: Section of C(pg_service.conf) that says how to log in.
        type: str
      os_user:
        description: User of the operating system to act as, for peer authentication. Needs root.
        type: str
      admin_user:
        description:
          - Role for a restore. It has to be allowed to make databases, and to own what the application's roles own; a superuser is.
          - If none of the C(admin_*) is set, the login for backups is used.
        type: str
      admin_passfile:
        description: File with the password of O(databases[].admin_user).
        type: path
      admin_service:
        description: Section of C(pg_service.conf) for a restore.
        type: str
      admin_os_user:
        description: User of the operating system to act as for a restore.
        type: str
      schema_query:
        description: SQL that gives the version of the application's schema as one value. It is recorded with each backup.
        type: str
      url_variable:
        description:
          - Variable in the application's environment file that holds the URL it logs in with. A restore then sees before it stops anything
            whether the restored application can log in.
        type: str
"""

    # What data is encrypted with.
    KEYS = r"""
options:
  key_variables:
    description:
      - Variables in the application's environment file with the keys that it encrypts or signs data with.
      - A set keeps a fingerprint of each, from which the key can't be told. By it, rows that were written under another key than the live
        one are refused when a part of an application is restored.
    type: list
    elements: str
    default: []
"""

    # Modules that write to a store.
    LOCK = r"""
options:
  lock_timeout:
    description:
      - Seconds to wait for another run that is at work in the store. It is never less than 2.
    type: int
    default: 0
  lock_dir:
    description:
      - Folder on a local disk for the locks of the store, absolute. It is made where it is missing, and several stores may share it.
      - Without it the locks are on the store's own files. A store on a file system whose locks can't be relied on is then refused.
        These are network and cluster file systems (NFS, CIFS, 9p, Ceph and the like), everything that FUSE mounts, and where a second
        process is seen to get a lock that is held.
      - All runs that work on a store have to name the same folder and the same path of the store. Only runs on one host exclude each other.
    type: path
"""
