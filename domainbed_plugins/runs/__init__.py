"""Run directories: their files, records, checkpoints."""
