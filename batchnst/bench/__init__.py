"""How fast this machine paints."""
