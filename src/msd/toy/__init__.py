"""The paper's 2-D toy, with an exact teacher, and the map of when many students pay. Images and pipelines are elsewhere."""

from msd.toy.summary import summary

__all__ = ["summary"]
