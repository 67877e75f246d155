#!/usr/bin/python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: health_check
short_description: Ask whether an application is healthy, and say why not
version_added: 1.0.0
author:
  - opskit contributors (@opskit)
description:
  - Runs many checks at once on the managed host, once or until they pass, and ends when O(deadline) is over whatever a check waits for.
  - Every check that does not pass has a reason from a closed list, what was seen, and a hint on what to do next.
  - Proxies that the environment names are not used, because the answer has to come from the address that is meant.
extends_documentation_fragment:
  - opskit.runbooks._attributes
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state. The checks run in check mode as well, except those of type V(command)
        that do not set O(checks[].check_safe).
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    support: full
    details:
      - It never reports a change. What a command of O(checks[].argv) does is up to that command.
  safe_file_operations:
    support: N/A
    details:
      - This module does not write files.
options:
  checks:
    description: What to check. All checks run side by side, each after those that it depends on.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Name of the check, unique in the task. Letters, digits, dots, dashes and underscores.
        type: str
        required: true
      type:
        description:
          - V(http) sends one request, with TLS when the URL begins with C(https), and looks at the answer.
          - V(tcp) opens a connection. That alone only proves that something accepts it, which a proxy or a socket unit also does for a
            service that is down, so set O(checks[].expect_regex) where the service speaks.
          - V(systemd) asks for the state of a unit.
          - V(command) runs a program that speaks the language of Nagios plugins.
        type: str
        required: true
        choices: [http, tcp, systemd, command]
      required:
        description: When V(false), the check is at worst a warning, does not count for O(quorum), and O(mode=until) does not wait for it.
        type: bool
        default: true
      depends_on:
        description: Ids of checks that have to be good before this one is asked, so that one cause does not show as ten failures.
        type: list
        elements: str
        default: []
      timeout:
        description: Seconds for one attempt as a whole; an answer that drips does not prolong it.
        type: float
        default: 5.0
      success_threshold:
        description:
          - How often in a row the check has to pass. With O(mode=once) it is asked up to this often and stops at the first failure.
          - The default is 1 with O(mode=once) and 3 with O(mode=until).
        type: int
      latency_warn_ms:
        description: An attempt that takes longer, in milliseconds, is a warning.
        type: float
      latency_fail_ms:
        description: An attempt that takes longer, in milliseconds, is a failure.
        type: float
      url:
        description:
          - For O(checks[].type=http), the address. Required there.
          - A user and password in it are refused, because they would be seen in the results; use O(checks[].token_file).
        type: str
      method:
        description: For O(checks[].type=http), the request method. Only methods that change nothing are offered.
        type: str
        choices: [GET, HEAD, OPTIONS]
        default: GET
      headers:
        description:
          - For O(checks[].type=http), more request headers.
          - They are seen in the arguments of the task. C(Authorization), C(Proxy-Authorization) and C(Cookie) are refused.
        type: dict
      token_file:
        description:
          - For O(checks[].type=http), a file on the managed host whose content is sent as C(Authorization) with the scheme C(Bearer).
          - It is not sent on to another host or port by a redirect.
        type: path
      host_header:
        description: For O(checks[].type=http), the C(Host) header. The default is the host of O(checks[].url).
        type: str
      server_name:
        description:
          - For O(checks[].type=http), the name that is asked for by TLS (SNI) and looked for in the certificate.
          - The default is the host of O(checks[].url).
        type: str
      connect_to:
        description: For O(checks[].type=http), V(HOST:PORT) to connect to instead of the host and port of O(checks[].url).
        type: str
      status_code:
        description: For O(checks[].type=http), the status codes that are right.
        type: list
        elements: int
        default: [200]
      body_regex:
        description: For O(checks[].type=http), a regular expression of Python that has to be found in the body, read as UTF-8.
        type: str
      json:
        description: For O(checks[].type=http), conditions that the body, a JSON document, has to fulfil. All of them have to hold.
        type: list
        elements: dict
        suboptions:
          path:
            description: Path to one value as in RFC 9535, for example V($.checks[0]['main db'].status).
            type: str
            required: true
          op:
            description:
              - How the value is compared with O(checks[].json[].value). A number never equals a string, nor a boolean a number.
              - V(exists) looks only whether the value is there.
            type: str
            choices: [eq, ne, lt, le, gt, ge, exists]
            default: eq
          value:
            description: What it is compared with.
            type: raw
      max_bytes:
        description: For O(checks[].type=http), how much of the body is read, in bytes.
        type: int
        default: 1048576
      max_redirects:
        description: For O(checks[].type=http), how many redirects are followed.
        type: int
        default: 0
      validate_certs:
        description: For O(checks[].type=http), whether the certificate has to be valid.
        type: bool
        default: true
      ca_file:
        description: For O(checks[].type=http), a file of PEM certificates that are trusted instead of the system's.
        type: path
      host:
        description: For O(checks[].type=tcp), the name or address.
        type: str
        default: 127.0.0.1
      port:
        description: For O(checks[].type=tcp), the port. Required there.
        type: int
      send:
        description: For O(checks[].type=tcp), text to send after the connection is there.
        type: str
      expect_regex:
        description: For O(checks[].type=tcp), a regular expression of Python that has to be found in what the service says first.
        type: str
      unit:
        description: For O(checks[].type=systemd), the unit, which has to be active and not to be restarting. Required there.
        type: str
      min_uptime:
        description: For O(checks[].type=systemd), seconds for which the unit has to be active already.
        type: float
        default: 0.0
      argv:
        description:
          - For O(checks[].type=command), the program and its arguments. No shell is involved. Required there.
          - Exit code 0 is V(pass), 1 V(warn), 2 V(fail), 3 V(unknown), any other V(fail).
        type: list
        elements: str
      check_safe:
        description: For O(checks[].type=command), whether the program may run in check mode, because it changes nothing.
        type: bool
        default: false
  mode:
    description:
      - V(once) asks every check once.
      - V(until) asks again and again, until every check was tried and O(quorum) is reached, or O(deadline) is over.
    type: str
    choices: [once, until]
    default: once
  interval:
    description: Seconds from the end of an attempt to the next one of the same check.
    type: float
    default: 1.0
  deadline:
    description: Seconds for the whole task. What is not known by then is V(unknown).
    type: float
    default: 60.0
  concurrency:
    description: How many checks are asked at the same time, from 1 to 256.
    type: int
    default: 32
  quorum:
    description: How many of the required checks have to be good, V(all), V(any) or a number.
    type: str
    default: all
  fail_on:
    description:
      - V(fail) fails the task when the RV(status) is V(fail) or V(unknown), V(warn) also when it is V(warn), V(never) not at all.
      - With V(warn), a warning does not count as a success for O(checks[].success_threshold) and O(mode=until).
    type: str
    choices: [fail, warn, never]
    default: fail
notes:
  - A name that can't be resolved in time holds a thread of the module, not the module.
seealso:
  - module: ansible.builtin.uri
  - module: ansible.builtin.wait_for
"""

EXAMPLES = r"""
- name: Wait until the application is ready
  opskit.runbooks.health_check:
    mode: until
    deadline: 120
    checks:
      - id: port
        type: tcp
        port: 8000
      - id: ready
        type: http
        url: http://127.0.0.1:8000/readyz
        depends_on: [port]
        json:
          - path: $.status
            value: ok
          - path: $.database.lag_s
            op: lt
            value: 5

- name: Look at the public side without leaving the host, and only warn when it is slow
  opskit.runbooks.health_check:
    checks:
      - id: public
        type: http
        url: https://app.example.com/healthz
        connect_to: 127.0.0.1:443
        latency_warn_ms: 300

- name: Look at the service and at its own check, and go on whatever they say
  opskit.runbooks.health_check:
    fail_on: never
    checks:
      - id: service
        type: systemd
        unit: nginx.service
        min_uptime: 10
      - id: disk
        type: command
        argv: [/usr/lib/nagios/plugins/check_disk, -w, 20%, -c, 10%, -p, /]
        check_safe: true
  register: health
"""

RETURN = r"""
status:
  description:
    - V(pass) when every check passes.
    - V(warn) when at least O(quorum) of the required checks pass or warn.
    - Otherwise V(fail), or V(unknown) when no required check failed but too little is known.
    - Commands that check mode left out do not count.
  returned: when the options are valid
  type: str
  sample: fail
schema:
  description: Version of this result. Keys are added without a new version, never changed or taken away.
  returned: when the options are valid
  type: int
  sample: 1
elapsed_s:
  description: How long the checks took, in seconds.
  returned: when the options are valid
  type: float
  sample: 0.142
deadline_hit:
  description: Whether O(deadline) ended the run.
  returned: when the options are valid
  type: bool
  sample: false
summary:
  description: How many checks have which status.
  returned: when the options are valid
  type: dict
  contains:
    pass:
      description: Checks that pass.
      returned: always
      type: int
      sample: 3
    warn:
      description: Checks that warn.
      returned: always
      type: int
      sample: 0
    fail:
      description: Checks that fail.
      returned: always
      type: int
      sample: 1
    unknown:
      description: Checks of which too little is known.
      returned: always
      type: int
      sample: 0
first_failure:
  description: The check to look at first, a root cause where there is one; V(null) when nothing is wrong.
  returned: when the options are valid
  type: dict
  contains:
    id:
      description: Id of the check.
      returned: always
      type: str
      sample: ready
    reason:
      description: As in RV(checks[].reason).
      returned: always
      type: str
      sample: connect_refused
    message:
      description: As in RV(checks[].message).
      returned: always
      type: str
      sample: the connection to 127.0.0.1:8000 is refused
    hint:
      description: What to do next.
      returned: always
      type: str
      sample: "Start the service, or correct the port: nothing listens at this address"
checks:
  description: The checks, in the order of O(checks).
  returned: when the options are valid
  type: list
  elements: dict
  contains:
    id:
      description: Id of the check.
      returned: always
      type: str
      sample: ready
    type:
      description: Type of the check.
      returned: always
      type: str
      sample: http
    target:
      description: What was asked. Whatever looks like a secret is masked.
      returned: always
      type: str
      sample: http://127.0.0.1:8000/readyz
    address:
      description: The address that was connected to last; empty where there is none.
      returned: always
      type: str
      sample: 127.0.0.1:8000
    status:
      description: V(pass), V(warn), V(fail) or V(unknown).
      returned: always
      type: str
      sample: fail
    reason:
      description:
        - Why the check is not a pass; empty when it is.
        - Of names, V(dns_nxdomain), V(dns_timeout), V(dns_servfail).
        - Of connections, V(connect_refused), V(connect_timeout), V(connect_reset), V(no_route).
        - Of TLS, V(tls_expired), V(tls_not_yet_valid), V(tls_hostname), V(tls_unknown_ca), V(tls_self_signed), V(tls_handshake).
        - Of answers, V(http_status), V(http_timeout), V(http_protocol), V(redirect), V(body_mismatch), V(json_mismatch), V(tcp_timeout),
          V(latency).
        - Of units, V(unit_inactive), V(unit_not_found), V(unit_crashloop), V(unit_uptime), V(systemd_unavailable).
        - Of commands, V(command_exit), V(command_timeout), V(command_not_found), and V(check_mode) for one that was not run.
        - Of the run, V(dependency) for a check that was not asked because of another, V(threshold) for one that did not pass often enough in
          a row, V(deadline) for one without any answer, V(probe_error) for what this host refused, too many open files for example.
      returned: always
      type: str
      sample: connect_refused
    message:
      description: What happened, for people.
      returned: always
      type: str
      sample: the connection to 127.0.0.1:8000 is refused
    attempts:
      description: How many attempts came to an end.
      returned: always
      type: int
      sample: 4
    consecutive:
      description: How many of them passed in a row at the end.
      returned: always
      type: int
      sample: 0
    first_pass_s:
      description: Seconds from the start to the end of the first attempt that passed or warned; V(null) when none did.
      returned: always
      type: float
      sample: 2.113
    latency_ms:
      description:
        - C(n), C(min), C(p50), C(p90), C(p95), C(p99) and C(max) of the attempts that got a whole answer, in milliseconds.
        - Percentiles are nearest-rank. C(p99) is V(null) when there are fewer than 100 values.
      returned: always
      type: dict
      sample: {"n": 3, "min": 1.8, "p50": 2.1, "p90": 2.4, "p95": 2.4, "p99": null, "max": 2.4}
    phases_ms:
      description: Where the time of the last attempt went, in milliseconds; for http C(dns), C(connect), C(tls), C(ttfb), C(transfer), C(total).
      returned: always
      type: dict
      sample: {"dns": 0.1, "connect": 0.2, "ttfb": 1.5, "transfer": 0.1, "total": 2.1}
    observed:
      description: What the last attempt saw; its keys depend on the type. Texts from outside are shortened and masked.
      returned: always
      type: dict
      sample: {"status_code": 503, "body": "starting"}
    expected:
      description: What was wanted.
      returned: always
      type: dict
      sample: {"status_code": [200]}
    history:
      description: The last 20 attempts, oldest first.
      returned: always
      type: list
      elements: dict
      sample: [{"at_s": 0.004, "status": "fail", "reason": "http_status", "latency_ms": 2.1}]
health_json:
  description: The same in the shape of application/health+json (draft-inadarei-api-health-check-06), where V(unknown) is V(fail).
  returned: when the options are valid
  type: dict
  sample: {"status": "pass", "checks": {"ready:responseTime": [{"componentType": "http", "status": "pass"}]}}
prometheus:
  description: The same in the text format of Prometheus, gauges C(opskit_health_check_status) and C(opskit_health_check_latency_seconds).
  returned: when the options are valid
  type: str
  sample: |
    opskit_health_check_status{id="ready",type="http",status="pass"} 1
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import fail
from ansible_collections.opskit.runbooks.plugins.module_utils._core.redact import redact
from ansible_collections.opskit.runbooks.plugins.module_utils._health.runner import Unhealthy, health_check
from ansible_collections.opskit.runbooks.plugins.module_utils._health.spec import ARGUMENTS


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = health_check(module.params, module.check_mode, Clock())
    except Unhealthy as error:
        fail(module, str(error), **error.result)
    except OpskitError as error:
        fail(module, str(error), what=redact(error.what), where=redact(error.where), todo=error.todo)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
