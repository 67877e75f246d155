# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a check is not a pass: a closed list, each with what to do next."""

from __future__ import annotations

from typing import Dict

HINTS: Dict[str, str] = {
    "dns_nxdomain": "Correct the host name, or add it to DNS or /etc/hosts on this host",
    "dns_timeout": "Look at the name servers in /etc/resolv.conf: none of them answered in time",
    "dns_servfail": "Look at the name servers in /etc/resolv.conf: they are unreachable or can't answer for this name",
    "connect_refused": "Start the service, or correct the port: nothing listens at this address",
    "connect_timeout": "Look for a firewall that drops packets, a host that is down, or a listener whose backlog is full",
    "connect_reset": "Look at the log of the service: it closed the connection before it answered",
    "no_route": "Look at the routes, the addresses and the firewall of this host",
    "tls_expired": "Renew the certificate and reload the service that presents it",
    "tls_not_yet_valid": "Compare the clocks of both hosts with the certificate's notBefore",
    "tls_hostname": "Use a name that the certificate contains, set server_name, or issue a certificate for this name",
    "tls_unknown_ca": "Set ca_file to the authority's certificate, or let the service send its intermediate certificates",
    "tls_self_signed": "Set ca_file to this certificate, or install one that an authority signed",
    "tls_handshake": "Try it by hand: openssl s_client -connect HOST:PORT",
    "http_status": "Look at the error log of the application for this request",
    "http_timeout": "Look at what the application waits for, or raise timeout",
    "http_protocol": "See that this port speaks HTTP, and that it is http where http is meant and https where https is",
    "redirect": "Probe the address that it leads to, or set max_redirects",
    "body_mismatch": "Compare the answer in observed with the pattern in expected",
    "json_mismatch": "Compare the value in observed with the condition in expected",
    "tcp_timeout": "Look at the service: it accepts connections but does not say what is expected",
    "latency": "Look at the load of the host and at phases_ms for the slow part",
    "unit_inactive": "Look at it: systemctl status UNIT; journalctl --unit UNIT --lines 50",
    "unit_not_found": "Correct the name of the unit, or install what brings it",
    "unit_crashloop": "Look at why it ends: journalctl --unit UNIT --lines 50",
    "unit_uptime": "Wait until it has run for min_uptime seconds, or look at why it was started again",
    "systemd_unavailable": "Use a command or http check on this host",
    "command_exit": "Run the command by hand and read its output",
    "command_timeout": "Run the command by hand to see what it waits for, or raise timeout",
    "command_not_found": "Install the program, or give its full path",
    "probe_error": "Mend what the message names and run it again",
    "dependency": "Mend the check that it depends on first",
    "threshold": "Raise deadline, or look at the history for what comes and goes",
    "deadline": "Raise deadline, or look at what the check waits for",
    "check_mode": "Set check_safe if the command changes nothing",
}
"""Every reason, with one imperative sentence without a full stop."""
