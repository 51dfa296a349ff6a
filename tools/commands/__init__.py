"""The subcommands of `secateur`, one file each; the file's name is the command's name.

A file has HELP (one line), EXAMPLE (a command line), `configure(parser)` and `run(args, ui)`.
"""
