"""results.json as tables and plots."""
