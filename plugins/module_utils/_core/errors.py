# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one kind of error that an operator sees."""

from __future__ import annotations

from typing import Optional, TypeVar

T = TypeVar("T")


class OpskitError(Exception):
    """Something an operator can cause or mend: what failed, where, and what to do next.

    :param what: what failed, one clause without a full stop, with the tool's own last words where there are any
    :param where: the path, address or name it happened at
    :param todo: what to do next, one imperative sentence without a full stop
    """

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(what, where, todo)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}." if self.where else f"{self.what}."
        return f"{text} {self.todo}." if self.todo else text


def present(value: Optional[T]) -> T:
    """Return a value that an earlier step has set; :class:`RuntimeError` is a mistake in this program."""
    if value is None:
        raise RuntimeError("a step was taken before the one that it builds on")
    return value
