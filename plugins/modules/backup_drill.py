#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_drill
short_description: Prove a set of a backup store by restoring it and starting the application on it
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Restores a set into a folder of its own, loads PostgreSQL's databases into a throw-away server, compares every file, table and row with
    what was recorded, has C(pg_amcheck) or SQLite read every index, and starts the application on the copy and probes it.
  - The copy runs cut off from everything live, in mount and network namespaces of its own that systemd makes. That it is cut off is
    looked at from inside before the application starts; where it is not, the drill is refused.
  - Records the proof in the store, with the measured recovery time and the recovery point. Removes everything that it has made, and at
    its start what a killed run has left.
  - A set that fails does not count any more, for retention or as the V(latest) one. Where this host and not the set is the cause (no
    space, a missing program, an application that does not become ready), nothing is recorded, and the message says so.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._backup
  - opskit.runbooks._backup.source
  - opskit.runbooks._backup.databases
  - opskit.runbooks._backup.lock
attributes:
  check_mode:
    support: full
    details:
      - Looks whether set, host and description fit each other, and restores and starts nothing.
  diff_mode:
    support: full
  idempotent:
    support: none
    details:
      - A drill is done anew each time.
  safe_file_operations:
    support: full
options:
  set:
    description:
      - Which set. An id, V(latest) for the newest verified one, or V(before <UTC time>), as V(before 2026-11-23T02:00:00Z).
    type: str
    default: latest
  drill_dir:
    description:
      - Folder for the copy, which a drill makes and removes. It must not exist, or be what a drill has left, and lie outside of everything else.
      - It needs room for the whole application, for each of PostgreSQL's databases twice.
    type: path
    required: true
  state_dir:
    description:
      - Folder of the lock that keeps two drills of one application apart. It is made where it is missing.
    type: path
    required: true
  units:
    description:
      - systemd services that serve requests. A copy of each is started, without what they depend on, and never the live one.
      - Workers and timers do not belong here.
    type: list
    elements: str
    required: true
  checks:
    description:
      - What proves that the application works, as the O(opskit.runbooks.health_check#module:checks) of M(opskit.runbooks.health_check).
        It is asked inside the copy's network.
      - A check of a unit that is not among O(units) is left out, with a warning.
    type: list
    elements: dict
    required: true
  environment:
    description:
      - Variables that have another value in a drill. They are put over the copy's environment file and into the environment of its units.
      - They are no place for secrets. That a database lies in the throw-away server needs no variable, see O(databases[].url_variable).
    type: dict
    default: {}
  owner:
    description:
      - User that O(schema_command) and O(migrate_command) run as. By default root, without its rights on the host.
    type: str
  schema_command:
    description:
      - Program and arguments that print the schema versions that the release on this host knows, the oldest first. It runs on the copy.
      - A set that is newer is refused.
    type: list
    elements: str
    default: []
  migrate_command:
    description:
      - Program and arguments that bring the copy to the schema of the release on this host, for a set that is older.
    type: list
    elements: str
    default: []
  start_timeout:
    description:
      - Seconds in which the application has to become ready.
    type: int
    default: 60
  seconds:
    description:
      - Seconds after which systemd ends what a drill has started, if nobody else has.
    type: int
    default: 3600
requirements:
  - systemd, as root, on a host or in a container that may make namespaces
  - the application itself, as a systemd service
  - for PostgreSQL, a server that is at least as new as that of the set (Debian's postgresql), and python3-psycopg2
seealso:
  - module: opskit.runbooks.backup_verify
  - module: opskit.runbooks.backup_restore
"""

EXAMPLES = r"""
- name: Drill the newest verified set
  opskit.runbooks.backup_drill:
    store: /var/backups/opskit/gateway
    application: gateway
    paths:
      data: /opt/gateway/data
      environment: /opt/gateway/.env
      config: /opt/gateway/config
      projects: /opt/gateway/projects
    logs: [/opt/gateway/data/logs]
    volatile: [/opt/gateway/data/cache, /opt/gateway/data/run]
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db
    units: [gateway.service]
    checks:
      - id: ready
        type: http
        url: http://127.0.0.1:8080/readyz
    drill_dir: /var/tmp/opskit-drill/gateway
    state_dir: /var/lib/opskit/gateway
"""

RETURN = r"""
action:
  description: V(drilled).
  returned: always
  type: str
  sample: drilled
plan:
  description: The steps.
  returned: always
  type: list
  elements: dict
  sample:
    - step: load
      target: database gateway
      reason: set 20261123T020000Z-7f3a
      bytes: 8060928
checks:
  description: What the application answered, and what was looked at when everything was removed.
  returned: always
  type: list
  elements: dict
  sample:
    - check: application ready
      ok: true
      detail: ""
set:
  description: The set, as M(opskit.runbooks.backup_set_info) shows it.
  returned: always
  type: dict
recovery_time_s:
  description: Seconds from the start of the drill until the application was ready on the copy. V(null) when it did not come to that.
  returned: always
  type: float
  sample: 11.2
recovery_point:
  description: The moment that the set is of, UTC.
  returned: always
  type: str
  sample: "2026-11-23T02:00:00Z"
recovery_point_age_s:
  description: Seconds from the recovery point to the start of the drill, which is what a disaster at that moment had lost.
  returned: always
  type: int
  sample: 43200
phases:
  description:
    - Seconds of each part. C(stage_s) (files and SQLite) runs beside C(cluster_s), C(load_s) and C(compare_s) (PostgreSQL).
  returned: always
  type: dict
  sample: {"isolate_s": 0.4, "stage_s": 4.1, "cluster_s": 1.6, "load_s": 3.9, "compare_s": 2.2, "start_s": 2.7}
failures:
  description: What speaks against the set. Each with C(object), empty where it is the set itself, and C(reason).
  returned: always
  type: list
  elements: dict
  sample: []
duration_s:
  description: Seconds that it took, with the removal of everything.
  returned: always
  type: float
  sample: 12.9
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(wiring.source_spec())
    spec.update(wiring.lock_spec())
    spec.update(wiring.drill_spec())
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_drill)


if __name__ == "__main__":
    main()
