"""Training of one role: batches, objectives, the update and the loop."""
