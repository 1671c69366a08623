"""Ways to start the runs of a sweep."""
