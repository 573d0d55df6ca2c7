"""Measure how fast this machine paints, and estimate what a run takes."""
