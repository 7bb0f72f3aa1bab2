"""The paper's 2-D toy, whose teacher is exact, and the map of when many students pay. Draws no pictures."""

from msd.toy.summary import summary

__all__ = ["summary"]
