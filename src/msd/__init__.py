"""Multi-Student Distillation (arXiv 2410.23274) as an experiment pipeline.

K one-step students are distilled from one conditional diffusion teacher, each for its own part of the
conditions. See ``docs/design.md`` for the architecture.
"""

__version__ = "0.1.0"
