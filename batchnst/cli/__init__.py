"""The front door: commands, options and what is shown; the only room that prints and exits."""
