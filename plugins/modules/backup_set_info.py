#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_info
short_description: List the sets of a backup store
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Lists the sets of a store with what they hold and how far each was proven.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._attributes.info_module
  - opskit.runbooks._backup
options:
  set:
    description:
      - Only this set. An id, V(latest) for the newest verified one, or V(before 2026-11-23T02:00:00Z) for the newest verified one before a
        moment.
      - Empty means all sets.
    type: str
    default: ''
seealso:
  - module: opskit.runbooks.backup_set
  - module: opskit.runbooks.backup_restore
"""

EXAMPLES = r"""
- name: List the sets
  opskit.runbooks.backup_set_info:
    store: /var/backups/opskit/gateway
    application: gateway
  register: result

- name: Fail when the newest verified set is older than 26 hours
  ansible.builtin.assert:
    that:
      - result.newest_verified | length > 0
      - (now(utc=true).replace(tzinfo=none) - (result.newest_verified[:16] | to_datetime('%Y%m%dT%H%M%SZ'))).total_seconds() < 26 * 3600
"""

RETURN = r"""
sets:
  description: The sets, newest first.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 20261123T020000Z-7f3a
      seq: 12
      time: "2026-11-23T02:00:00Z"
      files: 12040
      bytes: 1510000000
      stored_bytes: 747000000
      new_bytes: 4200000
      guarantee: none
      paths: [config, data, environment, projects]
      databases: [gateway]
      schema_versions: {gateway: "0002"}
      verified: content
      verified_at: "2026-11-23T02:00:21Z"
      failed: ""
newest_verified:
  description: Id of the newest set whose content was verified, or empty.
  returned: success
  type: str
  sample: 20261123T020000Z-7f3a
store:
  description: The store itself.
  returned: success
  type: dict
  contains:
    uuid:
      description: Identity of the store.
      type: str
    bytes:
      description: Bytes of all objects that its sets need.
      type: int
    free_bytes:
      description: Bytes that are free on its file system.
      type: int
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.1
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    spec = wiring.store_spec()
    spec.update(set={"type": "str", "default": ""})
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), wiring.backup_set_info)


if __name__ == "__main__":
    main()
