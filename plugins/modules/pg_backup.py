#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_backup
short_description: Take verified dumps of a live PostgreSQL database and put them back
version_added: 1.0.0
author:
  - opskit contributors (@opskit)
description:
  - Dumps one database with the client of its server's major version while the application goes on reading and writing, reads the whole
    dump back, and keeps the newest O(keep) good ones in a folder. The server's roles are saved beside each dump.
  - Each dump comes with what C(pg_dump) leaves out without C(--create) (owner, encoding, locale, rights, settings, comment and connection
    limit of the database), and with the number of rows and a sum over the content of each table, all of the same moment.
  - With O(state=restored) makes a new database of a dump beside the live one, compares the two moments, and only then exchanges the names in
    one transaction. The database that was there before is kept under another name, closed to connections.
  - There is no option for a password. Use a O(passfile), a O(service), or peer authentication with O(os_user).
extends_documentation_fragment:
  - opskit.runbooks._attributes
attributes:
  check_mode:
    support: full
    details:
      - Check mode logs in and reads, but does not end sessions. Whether they end in time is known in the real run only.
  diff_mode:
    support: full
    details:
      - The difference is the list of steps.
  idempotent:
    support: partial
    details:
      - With O(state=present), no dump is taken when nothing was committed in the server since the newest good one, or when the
        database and the server's roles are still what they were then. To tell, every row may be read. RV(reason) says why one was taken.
        With O(force=true) one is taken each time.
      - With O(state=restored), nothing is changed when the database holds what the dump holds. Where the server is of another major
        version than the dump, definitions are not compared.
  safe_file_operations:
    support: full
requirements:
  - python3-psycopg2 on the host
  - C(pg_dump), C(pg_dumpall) and C(pg_restore) of at least the server's major version on the host (Debian package C(postgresql-client-17)
    for PostgreSQL 17)
options:
  database:
    description:
      - Name of the database in the server, at most 63 bytes.
    type: str
    required: true
  directory:
    description:
      - Folder for the snapshots, an absolute path. With O(state=present) it is made, for the user of the task only, if it does not exist.
    type: path
    required: true
  name:
    description:
      - First part of the names of the snapshots. Several databases may share O(directory) under different names.
      - Default is the O(database), with C(_) for whatever is not a letter, digit, C(.), C(_) or C(-).
    type: str
    default: ""
  state:
    description:
      - V(present) takes a snapshot if one is needed and removes the surplus.
      - V(restored) makes a database of the O(snapshot) and gives it the name O(target). Stop the application first; sessions that are left
        are ended. A server that is older than the dump is refused.
      - A restore that was interrupted is completed, or undone and begun again, by running it again.
    type: str
    choices: [present, restored]
    default: present
  snapshot:
    description:
      - With O(state=restored), the id of a snapshot, or V(latest) for the newest one that is whole.
    type: str
    default: latest
  target:
    description:
      - With O(state=restored), the name of the database that is put back, by default O(database). Another one makes a copy beside it.
    type: str
    default: ""
  keep:
    description:
      - With O(state=present), the number of newest good snapshots to keep, at least 1. Older ones are deleted after the new one was
        checked. Nothing is deleted after a failure.
    type: int
    default: 7
  force:
    description:
      - With O(state=present), take a snapshot even when nothing was written since the newest one.
    type: bool
    default: false
  compression:
    description:
      - With O(state=present), gzip's level for the dump, from 0 (none) to 9. C(pg_dump)'s other ways to compress have no checksum of the content.
    type: int
    default: 6
  host:
    description:
      - Name or address of the server, or the folder of its socket. By default C(/var/run/postgresql).
    type: str
    default: ""
  port:
    description:
      - Port of the server, by default 5432.
    type: int
  user:
    description:
      - Role to log in with. By default the one that is named like the operating system's user.
      - For a dump it has to be allowed to read the whole database. Only a superuser can save the verifiers of the roles' passwords.
      - For a restore it has to be allowed to make databases, to own what the dump's roles own, and to end sessions. Only a superuser makes
        roles that the server does not have.
    type: str
    default: ""
  passfile:
    description:
      - File on the host with the password, as libpq's C(.pgpass), mode 0600.
    type: path
  service:
    description:
      - Section of C(pg_service.conf) that says how to log in.
    type: str
    default: ""
  os_user:
    description:
      - User of the operating system to act as, for peer authentication. Needs root.
    type: str
    default: ""
  schema_query:
    description:
      - With O(state=present), SQL that gives the version of the application's schema as one value. It is recorded with the snapshot.
    type: str
    default: ""
  database_timeout:
    description:
      - Seconds to wait for a lock on a table; with O(state=restored), for the sessions in the database to end.
    type: int
    default: 30
  lock_timeout:
    description:
      - Seconds to wait for another run with the same O(directory) and O(name).
    type: int
    default: 0
notes:
  - The globals hold what a server needs to let the roles in, as C(pg_dumpall --globals-only) writes it. They are never a part of a result.
  - What a restore has kept aside takes as much of the server's disk as the database did. RV(asides) says how to remove it.
seealso:
  - module: opskit.runbooks.sqlite_snapshot
  - module: opskit.runbooks.backup_set
  - name: PostgreSQL, SQL dump
    description: What a dump is, and what is not in it.
    link: https://www.postgresql.org/docs/current/backup-dump.html
"""

EXAMPLES = r"""
- name: Take a dump of a live database as the user that owns the server
  opskit.runbooks.pg_backup:
    database: gateway
    directory: /var/backups/gateway/postgresql
    user: postgres
    os_user: postgres

- name: Take one over TCP before a risky change, even if nothing was written
  opskit.runbooks.pg_backup:
    database: gateway
    directory: /var/backups/gateway/postgresql
    name: before-change
    host: 127.0.0.1
    user: gateway
    passfile: /etc/gateway/pgpass
    keep: 3
    force: true

- name: Put the newest good dump back while the application is stopped
  opskit.runbooks.pg_backup:
    database: gateway
    directory: /var/backups/gateway/postgresql
    user: postgres
    os_user: postgres
    state: restored

- name: Make a copy of the newest dump beside the live database
  opskit.runbooks.pg_backup:
    database: gateway
    target: gateway_copy
    directory: /var/backups/gateway/postgresql
    user: postgres
    os_user: postgres
    state: restored
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be done. One of V(created), V(deleted), V(restored) and V(none).
  returned: success
  type: str
  sample: created
plan:
  description: The steps in their order, the same in check mode and in the real run.
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: What is done.
      returned: success
      type: str
      sample: take snapshot
    target:
      description: What it is done to. An id that does not exist yet is V(<new>).
      returned: success
      type: str
      sample: <new>
    reason:
      description: Why it is needed.
      returned: success
      type: str
      sample: the database was written since the newest snapshot
    bytes:
      description: Upper bound of the bytes that it writes.
      returned: when it writes
      type: int
      sample: 28672
checks:
  description: What was looked at after the change. Empty when nothing changed, and in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: What was looked at.
      returned: success
      type: str
      sample: pg_restore
    ok:
      description: Whether it was as it should be.
      returned: success
      type: bool
      sample: true
    detail:
      description: What was seen.
      returned: success
      type: str
      sample: read to its end
reason:
  description: Why something was done, or why not.
  returned: success
  type: str
  sample: nothing was written since the snapshot gateway-20261123T020000Z-7f3a
snapshot:
  description: The newest good snapshot, or the one that was restored. Empty in check mode when one would be taken.
  returned: success
  type: dict
  contains:
    id:
      description: Its id.
      returned: success
      type: str
      sample: gateway-20261123T020000Z-7f3a
    path:
      description: The file, an archive in C(pg_dump)'s custom format.
      returned: success
      type: str
      sample: /var/backups/gateway/postgresql/gateway-20261123T020000Z-7f3a.dump
    time:
      description: When it was taken, UTC.
      returned: success
      type: str
      sample: "2026-11-23T02:00:00Z"
    bytes:
      description: Size in bytes.
      returned: success
      type: int
      sample: 28672
    sha256:
      description: SHA-256 of the file.
      returned: success
      type: str
      sample: 5daa6b4fc2616dc454fa5c0d5579fa810549a9b8447769b9434fb87cece0b1d0
    database:
      description: Name of the database that it is of.
      returned: success
      type: str
      sample: gateway
    tables:
      description: Number of tables in it.
      returned: success
      type: int
      sample: 12
    rows:
      description: Number of rows in all tables.
      returned: success
      type: int
      sample: 48211
    server_version:
      description: Version of the server at that time.
      returned: success
      type: str
      sample: "17.6"
    schema_version:
      description: What the O(schema_query) gave, or empty.
      returned: success
      type: str
      sample: "42"
    globals:
      description: The roles, memberships and tablespaces of the server, as SQL.
      returned: success
      type: dict
      contains:
        path:
          description: The file.
          returned: success
          type: str
          sample: /var/backups/gateway/postgresql/gateway-20261123T020000Z-7f3a.globals.sql
        verifiers:
          description: Whether it holds verifiers of passwords. Without, restored roles can't log in by password until they get a new one.
          returned: success
          type: bool
          sample: true
snapshots:
  description: Ids of the snapshots that are there, the oldest first.
  returned: when O(state=present)
  type: list
  elements: str
  sample: [gateway-20261123T020000Z-7f3a]
deleted:
  description: Ids of those that were deleted, or in check mode would be.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
damaged:
  description: Snapshots that are there but can't be relied on.
  returned: when O(state=present)
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      returned: success
      type: str
      sample: gateway-20261122T020000Z-19ce
    damage:
      description: What is wrong.
      returned: success
      type: str
      sample: its image is missing
  sample: []
orphans:
  description: Dumps and globals without a description. They do not count as snapshots and are never deleted.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
aside:
  description: Name of the database that was replaced, closed to connections, or empty. It is never dropped by this module.
  returned: when O(state=restored)
  type: str
  sample: gateway_b_4f1c0e2a9d77
asides:
  description: All databases that restores of this one have kept aside, the oldest first.
  returned: when O(state=restored)
  type: list
  elements: dict
  contains:
    database:
      description: Its name.
      returned: success
      type: str
      sample: gateway_b_4f1c0e2a9d77
    drop:
      description: SQL that removes it for good.
      returned: success
      type: str
      sample: DROP DATABASE "gateway_b_4f1c0e2a9d77"
  sample: []
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.912
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import Operation
from ansible_collections.opskit.runbooks.plugins.module_utils._core.snapshots import default_name, require_path
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.backups import DumpDirectory, RestoreDump, TakeDump
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.database import PostgresDatabase, check_name
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.errors import PostgresError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.login import Login
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.restore import PostgresTarget


def build(params: Dict[str, Any], clock: Clock) -> Operation:
    for option in ("directory", "passfile"):
        if params[option] is not None:
            require_path(params[option], option)
    if not 0 <= params["compression"] <= 9:
        raise PostgresError(f"compression is {params['compression']}", todo="Choose a level from 0 to 9")
    for database in (params["database"], params["target"] or params["database"]):
        check_name(database)
    name = params["name"] or default_name(params["database"])
    login = Login(
        host=params["host"],
        port=params["port"] or 0,
        user=params["user"],
        passfile=params["passfile"] or "",
        service=params["service"],
        os_user=params["os_user"],
    )
    directory = DumpDirectory(params["directory"], name)
    if params["state"] == "restored":
        database = PostgresDatabase(name, params["target"] or params["database"], login, params["database_timeout"])
        target = PostgresTarget(database, login, params["database_timeout"])
        return RestoreDump(target, directory, params["snapshot"], params["lock_timeout"], clock)
    source = PostgresDatabase(
        name, params["database"], login, params["database_timeout"], params["schema_query"], compression=params["compression"]
    )
    return TakeDump(source, directory, params["keep"], params["force"], params["lock_timeout"], clock)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "database": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "snapshot": {"type": "str", "default": "latest"},
            "target": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 7},
            "force": {"type": "bool", "default": False},
            "compression": {"type": "int", "default": 6},
            "host": {"type": "str", "default": ""},
            "port": {"type": "int"},
            "user": {"type": "str", "default": ""},
            # Named so, Ansible would take it for the secret itself; it is the path of a file.
            "passfile": {"type": "path", "no_log": False},
            "service": {"type": "str", "default": ""},
            "os_user": {"type": "str", "default": ""},
            "schema_query": {"type": "str", "default": ""},
            "database_timeout": {"type": "int", "default": 30},
            "lock_timeout": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run_module(module, build)


if __name__ == "__main__":
    main()
