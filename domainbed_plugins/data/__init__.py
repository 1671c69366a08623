"""Data: splits, streams that can go on, decoded validation images."""
