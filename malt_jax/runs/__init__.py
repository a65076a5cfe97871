"""Run directories: what is on the disk of a run, and how it gets there."""
