#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set
short_description: Save an application's files and databases as one verified set
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Saves everything that the description names as one set in a backup store, if something changed since the last set.
  - Files that did not change are not read again, and what is equal is not stored again.
  - A new set is read back and compared before the module succeeds (O(verify)).
  - A set exists as a whole or not at all. After a crash, a full disk or a kill the earlier sets are what they were, and the same call
    does the job.
  - Without O(pause) the application goes on writing meanwhile. Databases are copied first, so that every row has its files; files and
    databases are each consistent, but of different moments.
  - With O(pause) everything that takes long is still done while the application writes. It is paused only for what has changed since, so that
    files and databases are of one moment.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.source
  - opskit.runbooks._backup.databases
  - opskit.runbooks._backup.keys
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
    details:
      - What has to be read to know whether it changed is read in check mode too.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Without a change since the last set nothing is done until that one is older than O(unchanged_interval).
      - A database that is written to all the time is saved each time.
  safe_file_operations:
    support: full
options:
  unchanged_interval:
    description:
      - Seconds after which a new set is made even though nothing changed. It then takes only the bytes of its manifest.
    type: int
    default: 72000
  shrink_limit:
    description:
      - Percent of the files or bytes of a saved path that may be gone since the last set. More than that is refused, because it is more
        often a lost disk than an intention.
      - V(0) allows everything.
    type: int
    default: 50
  compression_level:
    description:
      - Level of zstd, from 1 (fast) to 19 (small).
    type: int
    default: 3
  verify:
    description:
      - How the new set is verified at once.
      - V(content) decompresses every new object and compares each file and database with what was read.
      - V(stored) reads the bytes of every new object.
      - V(none) leaves it to M(opskit.runbooks.backup_verify). Such a set does not count for retention and is not the V(latest) of a restore.
    type: str
    choices: [content, stored, none]
    default: content
  pause:
    description:
      - How the application is kept from writing for the moment that the set is of.
      - A watchdog outside of this module ends the pause if the module is killed or late. What ends it may be run more than once, and also
        by the next run that finds that one was left behind.
      - Arguments are seen by every user of the host, so a secret is none of them.
    type: dict
    suboptions:
      kind:
        description:
          - V(hook) has the application hold its writes. The set's guarantee is then V(paused).
          - V(stop) stops the application and starts it again, unless it did not run before. The set's guarantee is then V(stopped).
        type: str
        choices: [hook, stop]
        required: true
      begin:
        description:
          - Program and arguments that begin it, and return only when nothing is written any more.
          - A V(hook) is given O(pause.seconds) as its last argument, and has to end the pause by itself after that many seconds.
        type: list
        elements: str
        default: []
      end:
        description: Program and arguments that end it, with success also where there is nothing to end.
        type: list
        elements: str
        default: []
      check:
        description:
          - Program and arguments that tell whether it holds, run before it is believed.
          - For V(hook) it ends with 0 while writes are paused, and prints what tells one pause from the next.
          - For V(stop) it ends with 0 while the application runs. Without it the application is started afterwards even if it did not run before.
        type: list
        elements: str
        default: []
      seconds:
        description: How long it may last, from 1 to 3600. What takes longer did not hold.
        type: int
        default: 60
  require_pause:
    description: Whether the set fails when the pause could not be had or did not hold.
    type: bool
    default: false
  state_dir:
    description:
      - Folder for the record of a pause, outside of what is saved. It has to survive a reboot.
      - Needed with O(pause).
    type: path
seealso:
  - module: opskit.runbooks.backup_set_info
  - module: opskit.runbooks.backup_verify
  - module: opskit.runbooks.backup_prune
  - module: opskit.runbooks.backup_restore
"""

EXAMPLES = r"""
- name: Save the gateway
  opskit.runbooks.backup_set:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      data: /opt/gateway/data
      environment: /opt/gateway/.env
      config: /opt/gateway/config
      projects: /opt/gateway/projects
    logs:
      - /opt/gateway/data/logs
    volatile:
      - /opt/gateway/data/run
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db

- name: Save it again even though nothing changed
  opskit.runbooks.backup_set:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      config: /opt/gateway/config
    unchanged_interval: 0

- name: Save it while it holds its writes
  opskit.runbooks.backup_set:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      data: /opt/gateway/data
    pause:
      kind: hook
      begin: [/usr/local/bin/gateway, pause]
      end: [/usr/local/bin/gateway, resume]
      check: [/usr/local/bin/gateway, paused]
      seconds: 30
    require_pause: true
    state_dir: /var/lib/opskit/gateway
"""

RETURN = r"""
action:
  description: V(created) or V(none).
  returned: success
  type: str
  sample: created
reason:
  description: Why a set was made, or why none was.
  returned: success
  type: str
  sample: 3 shards changed, 1 databases changed
plan:
  description: The steps, in order. In check mode what would be done.
  returned: success
  type: list
  elements: dict
  contains:
    step:
      description: What is done.
      type: str
    target:
      description: What it is done to. An id that does not exist yet is C(<new>).
      type: str
    reason:
      description: Why it is needed.
      type: str
    bytes:
      description: Upper bound of the bytes written.
      type: int
  sample:
    - step: publish set
      target: <new>
      reason: the first set
checks:
  description: What was looked at afterwards.
  returned: success
  type: list
  elements: dict
  sample:
    - check: content of set 20261123T020000Z-7f3a
      ok: true
      detail: 12 objects read back and compared
set:
  description: The new set, or the last one where none was made.
  returned: when there is a set
  type: dict
  contains:
    id:
      description: UTC time and four random digits.
      type: str
    seq:
      description: Number of the set in its store.
      type: int
    time:
      description: When it was begun (RFC 3339, UTC).
      type: str
    files:
      description: Number of files, folders and links.
      type: int
    bytes:
      description: Bytes of the files and databases.
      type: int
    stored_bytes:
      description: Bytes of all objects that the set needs.
      type: int
    new_bytes:
      description: Bytes of the objects that the set was the first to need.
      type: int
    guarantee:
      description: V(paused) or V(stopped) when files and databases are of one moment, else V(none).
      type: str
    pause_s:
      description: Seconds that writes were held.
      type: float
    paths:
      description: Names of the saved paths.
      type: list
      elements: str
    databases:
      description: Names of the databases.
      type: list
      elements: str
    schema_versions:
      description: Versions of their schemas, by name, where the application gives one.
      type: dict
    verified:
      description: V(none), V(stored) or V(content).
      type: str
    verified_at:
      description: When (RFC 3339, UTC), or empty.
      type: str
    failed:
      description: What the newest verification found wrong, or empty.
      type: str
phases:
  description: Seconds that scanning, storing and verifying took.
  returned: success
  type: dict
  sample:
    scan_s: 0.21
    store_s: 8.3
    verify_s: 2.1
duration_s:
  description: Seconds that all of it took.
  returned: success
  type: float
  sample: 10.7
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.lock_spec())
    spec.update(wiring.source_spec())
    spec.update(
        unchanged_interval={"type": "int", "default": 72000},
        shrink_limit={"type": "int", "default": 50},
        compression_level={"type": "int", "default": 3},
        verify={"type": "str", "choices": ["content", "stored", "none"], "default": "content"},
    )
    spec.update(wiring.pause_spec())
    spec.update(wiring.key_spec())
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_set)


if __name__ == "__main__":
    main()
