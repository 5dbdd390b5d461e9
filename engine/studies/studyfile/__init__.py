"""studyfile."""
