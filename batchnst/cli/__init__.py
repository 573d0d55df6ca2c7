"""The command line: commands, options and progress display; the only room that prints and exits."""
