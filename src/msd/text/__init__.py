"""Prompts, text encoders and embedding archives. What is named here needs no PyTorch; the encoders' modules do."""

from msd.text.archive import PromptArchive, open_prompts, write_prompts
from msd.text.prompts import Prompt, PromptReport, read_prompts

__all__ = ["Prompt", "PromptArchive", "PromptReport", "open_prompts", "read_prompts", "write_prompts"]
