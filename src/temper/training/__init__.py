"""Training of captured graphs: one loop for every technique that trains."""
