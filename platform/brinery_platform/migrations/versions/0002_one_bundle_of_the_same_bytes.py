"""One bundle of the same name and bytes for each owner, also when it is uploaded twice at the same moment."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_index("uq_bundles_owner_name_sha256", "bundles", ["owner", "name", "sha256"], unique=True)


def downgrade() -> None:
    """Take it back."""
    op.drop_index("uq_bundles_owner_name_sha256", table_name="bundles")
