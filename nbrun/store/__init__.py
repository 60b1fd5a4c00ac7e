"""SQLite: where runs are kept."""
