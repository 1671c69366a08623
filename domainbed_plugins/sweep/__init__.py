"""Sweeps: what to train, and training it."""
