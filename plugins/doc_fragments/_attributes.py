# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is private: it serves the modules of this collection and may change at any time.

from __future__ import annotations


class ModuleDocFragment:
    # Every module extends this one and states support (and details where not full) for the attributes without a support here.
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the plan that the real run then follows, without modifying the target.
  diff_mode:
    description: Returns what has changed, or in check mode would change, when run in diff mode. Never shows a secret.
  idempotent:
    description:
      - When run twice in a row outside check mode with the same arguments, the second run reports no change.
      - This assumes that the system under management did not change between the two runs.
  platform:
    description: Operating systems that the module runs on.
    support: full
    platforms: linux
  safe_file_operations:
    description: Files are published by a temporary file and a rename, so that a reader or an interruption never meets half of one.
"""

    # Extended together with the above by modules that only look.
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state.
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    support: full
    details:
      - This module does not modify state.
  safe_file_operations:
    support: N/A
    details:
      - This module does not write files.
"""
