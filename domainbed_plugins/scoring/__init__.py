"""Measuring saved checkpoints."""
