# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", Id, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("preferences", sa.JSON),
        sa.Column("created_at", Time, nullable=False),
    )
    op.create_table(
        "providers",
        sa.Column("id", Id, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("api_key", sa.String(256)),
    )
    op.create_table(
        "projects",
        sa.Column("id", Id, primary_key=True),
        sa.Column("slug", sa.String(64), nullable=False, unique=True),
        sa.Column("title", sa.String(256), nullable=False),
        sa.Column("user_id", Id, sa.ForeignKey("users.id", ondelete="CASCADE")),
        sa.Column("created_at", Time, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("id", Id, primary_key=True),
        sa.Column("project_id", Id, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("provider_id", Id, sa.ForeignKey("providers.id"), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.CheckConstraint("type IN ('input', 'cache_read', 'cache_write', 'output', 'reasoning')", name="usage_type"),
    )
    op.create_index("ix_usage_project_id", "usage", ["project_id"])
    op.create_table(
        "uploads",
        sa.Column("id", Id, primary_key=True),
        sa.Column("project_id", Id, sa.ForeignKey("projects.id", ondelete="CASCADE")),
        sa.Column("path", sa.String(512), nullable=False, unique=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("signature", sa.String(64), nullable=False),
        sa.Column("created_at", Time, nullable=False),
    )
    op.create_index("ix_uploads_project_id", "uploads", ["project_id"])


def downgrade() -> None:
    for table in ("uploads", "usage", "projects", "providers", "users"):
        op.drop_table(table)
