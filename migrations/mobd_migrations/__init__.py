"""The history of mobd's schema, as Alembic revisions."""
