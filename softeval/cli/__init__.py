"""The `softeval` command, one file a subcommand."""
