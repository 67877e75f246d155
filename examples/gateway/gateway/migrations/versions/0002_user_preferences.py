# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One row a preference: users.preferences moves to a table of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
users = sa.table("users", sa.column("id", Id), sa.column("preferences", sa.JSON))
preferences = sa.table("user_preferences", sa.column("user_id", Id), sa.column("key", sa.String), sa.column("value", sa.JSON))


def upgrade() -> None:
    op.create_table(
        "user_preferences",
        sa.Column("user_id", Id, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    connection = op.get_bind()
    rows = [
        {"user_id": user_id, "key": key, "value": value}
        for user_id, values in connection.execute(sa.select(users.c.id, users.c.preferences)).all()
        for key, value in (values or {}).items()
    ]
    if rows:
        connection.execute(sa.insert(preferences), rows)
    op.drop_column("users", "preferences")


def downgrade() -> None:
    op.add_column("users", sa.Column("preferences", sa.JSON))
    connection = op.get_bind()
    merged: dict[int, dict[str, object]] = {}
    for user_id, key, value in connection.execute(sa.select(*preferences.c)).all():
        merged.setdefault(user_id, {})[key] = value
    for user_id, values in merged.items():
        connection.execute(sa.update(users).where(users.c.id == user_id).values(preferences=values))
    op.drop_table("user_preferences")
