"""Candidates from the saved checkpoints of a sweep: their members, their weights, and measuring them."""
