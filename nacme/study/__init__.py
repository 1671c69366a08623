"""The study: what criteria choose, how they rank, how they differ, and how sure that is."""
