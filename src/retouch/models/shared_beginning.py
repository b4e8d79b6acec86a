"""The beginning that several prompts share, such as a system turn, and that is run once."""

from __future__ import annotations

from collections.abc import Sequence

MIN_SHARED = 8  # tokens; a shorter common beginning is not worth sharing


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all prompts begin with, before the last token of any; 0 for one."""
    first, longest = prompts[0], min(map(len, prompts)) - 1
    for prompt in prompts:
        while longest > 0 and list(prompt[:longest]) != list(first[:longest]):
            longest -= 1
    return longest if longest >= MIN_SHARED and len(prompts) > 1 else 0
