# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rooms offer each other. Only ``_application`` puts them together."""

from __future__ import annotations

from typing import Any, Dict, List, Protocol

from .operation import Check


class DatabaseSource(Protocol):
    """One database of the application, as the backup store sees it."""

    name: str
    """The name it has in a set."""
    engine: str
    """``sqlite``."""

    def files(self) -> List[str]:
        """Return the absolute paths that belong to the database itself and are never saved as files."""

    def require(self) -> None:
        """Raise :class:`OpskitError` when the database is missing or can't be read. Opens nothing, makes nothing."""

    def size(self) -> int:
        """Return the upper bound of an image's bytes."""

    def fingerprint(self) -> str:
        """Return a digest that moves with every commit, without opening the database.

        One that is written at this very moment gives a digest that never comes again.
        """

    def copy(self, target: str) -> None:
        """Write a consistent image to a new file, mode 0600."""

    def facts(self, image: str) -> Dict[str, Any]:
        """Return what is to be remembered of an image: plain JSON, ``bytes`` and ``sha256`` and what the engine knows."""

    def check_image(self, path: str, facts: Dict[str, Any]) -> List[Check]:
        """Look at an image with the engine's own means and compare it with the facts. Changes nothing."""
