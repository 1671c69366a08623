"""OOD detectors on the checkpoints of a sweep."""
