"""Alembic's environment and the revisions of this library's own tables."""
