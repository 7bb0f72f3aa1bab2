"""The engine: runs a step object, tells nothing of teachers or parts."""
