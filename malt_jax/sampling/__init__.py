"""Sampling completions over the cache tree."""
