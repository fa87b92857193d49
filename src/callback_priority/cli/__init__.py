"""The command line, `callback-priority`: one file per command, and what commands share."""
