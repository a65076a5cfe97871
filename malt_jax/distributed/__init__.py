"""Processes of one run."""
