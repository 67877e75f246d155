#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: application_check
short_description: Validate the description of an application on its host
version_added: 1.0.0
author: opskit contributors (@opskit)
description:
  - Looks at the description that the role P(opskit.runbooks.application#role) declares and says everything that is wrong with it at once,
    by the name of the variable.
  - Nothing of the application has to be there, so that a restore after a disaster gets past it. What is there has to be of the right kind.
extends_documentation_fragment:
  - opskit.runbooks._attributes
  - opskit.runbooks._attributes.info_module
  - opskit.runbooks._backup.databases
options:
  name:
    description: Name of the application.
    type: str
    required: true
  root:
    description: Folder that the application lives in.
    type: str
    required: true
  owner:
    description: User that the application runs as. Empty means unset.
    type: str
    default: ''
  group:
    description: Group that the application runs as. Empty means unset.
    type: str
    default: ''
  paths:
    description:
      - What is saved, by name. The usual names are V(data), V(environment), V(config) and V(projects).
      - An empty path means unset.
    type: dict
    required: true
  logs:
    description: Folders of logs.
    type: list
    elements: str
    default: []
  volatile:
    description: Folders of caches, sockets and process ids, which are never saved.
    type: list
    elements: str
    default: []
  scopes:
    description: Parts that can be restored by name, as in M(opskit.runbooks.backup_restore_scope).
    type: dict
    default: {}
  service_manager:
    description: How the application is started and stopped.
    type: str
    choices: [systemd, command]
    default: systemd
  units:
    description: systemd units that serve requests.
    type: list
    elements: str
    default: []
  worker_units:
    description: systemd units of workers and timers.
    type: list
    elements: str
    default: []
  start_command:
    description: Program and arguments that start the application.
    type: list
    elements: str
    default: []
  stop_command:
    description: Program and arguments that stop the application.
    type: list
    elements: str
    default: []
  status_command:
    description: Program and arguments that end with 0 when the application runs.
    type: list
    elements: str
    default: []
  pause_command:
    description: Program and arguments that pause writes.
    type: list
    elements: str
    default: []
  resume_command:
    description: Program and arguments that resume writes.
    type: list
    elements: str
    default: []
  paused_command:
    description: Program and arguments that end with 0 while writes are paused.
    type: list
    elements: str
    default: []
  live_url:
    description: URL that answers when the process lives. Empty means unset.
    type: str
    default: ''
  ready_url:
    description: URL that answers when the application can serve. Empty means unset.
    type: str
    default: ''
  metrics_url:
    description: URL of the metrics. Empty means unset.
    type: str
    default: ''
  smoke_checks:
    description: Checks in the form of M(opskit.runbooks.health_check).
    type: list
    elements: dict
    default: []
  state_dir:
    description: Folder of the runbooks' own state, outside everything that is saved.
    type: str
    required: true
  start_timeout:
    description: Seconds that a start may take.
    type: int
    default: 60
  stop_timeout:
    description: Seconds that a stop may take.
    type: int
    default: 60
seealso:
  - module: opskit.runbooks.health_check
"""

EXAMPLES = r"""
- name: Validate the description of the gateway
  opskit.runbooks.application_check:
    name: gateway
    root: /opt/gateway
    paths:
      data: /opt/gateway/data
      environment: /opt/gateway/.env
    databases:
      - name: gateway
        engine: sqlite
        path: /opt/gateway/data/gateway.db
    units: [gateway.service]
    ready_url: http://127.0.0.1:8000/readyz
    state_dir: /var/lib/opskit/gateway
"""

RETURN = r"""
action:
  description: Always V(none).
  returned: success
  type: str
  sample: none
plan:
  description: Always empty.
  returned: success
  type: list
  elements: dict
  sample: []
checks:
  description: Always empty; a description with a mistake fails the module.
  returned: success
  type: list
  elements: dict
  sample: []
paths:
  description: The paths that are set, by name.
  returned: success
  type: dict
  sample: {data: /opt/gateway/data, environment: /opt/gateway/.env}
packages:
  description: Debian packages that a backup or restore of this application needs and that are not installed.
  returned: success
  type: list
  elements: str
  sample: [zstd, python3-psycopg2]
uid:
  description: Effective user id that the module ran as.
  returned: success
  type: int
  sample: 0
duration_s:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.001
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._application.check import application_check
from ansible_collections.opskit.runbooks.plugins.module_utils._application.description import database_spec
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import run_module


def main() -> None:
    strings = {"type": "list", "elements": "str", "default": []}
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "str", "required": True},
            "owner": text,
            "group": text,
            "paths": {"type": "dict", "required": True},
            "logs": strings,
            "volatile": strings,
            "databases": database_spec(),
            "scopes": {"type": "dict", "default": {}},
            "service_manager": {"type": "str", "choices": ["systemd", "command"], "default": "systemd"},
            "units": strings,
            "worker_units": strings,
            "start_command": strings,
            "stop_command": strings,
            "status_command": strings,
            "pause_command": strings,
            "resume_command": strings,
            "paused_command": strings,
            "live_url": text,
            "ready_url": text,
            "metrics_url": text,
            "smoke_checks": {"type": "list", "elements": "dict", "default": []},
            "state_dir": {"type": "str", "required": True},
            "start_timeout": {"type": "int", "default": 60},
            "stop_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    run_module(module, application_check)


if __name__ == "__main__":
    main()
