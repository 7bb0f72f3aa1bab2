"""Training of a teacher of one's own."""
