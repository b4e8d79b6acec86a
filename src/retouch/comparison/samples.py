"""Responses of all methods to the same prompts: which ones a point keeps, and their page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from retouch.comparison.grid import Grid
from retouch.comparison.result import Result
from retouch.core.formatting import show_response, words
from retouch.core.types import Sample
from retouch.suites.sources import evenly

TEXT_LENGTH = 300  # characters of a response on the page
Key = tuple[object, ...]


def choose_samples(
    samples: Sequence[Sample], count: int, public: Collection[str] = ()
) -> tuple[Sample, ...]:
    """At most `count` responses of the model as it was measured, to the same prompts every time.

    Args:
        samples: all responses of an evaluation; where an edit acts, the base's too.
        count: how many to keep, equally many of each metric and evenly spaced.
        public: suites whose prompts are not kept, since their text is not ours; group and id name
            them.
    """
    edited = any(one.model == "edited" for one in samples)
    by_prompt: dict[Key, Sample] = {}
    for one in samples:
        if (one.model == "edited") is edited:
            by_prompt.setdefault(_key(one), one)
    groups: dict[tuple[str, str], list[Sample]] = {}
    for one in by_prompt.values():
        groups.setdefault((one.suite, one.metric), []).append(one)
    chosen: list[Sample] = []
    for number, group in enumerate(groups.values()):
        chosen += evenly(group, (count - len(chosen)) // (len(groups) - number))
    return tuple(replace(one, prompt=()) if one.suite in public else one for one in chosen)


def render_samples(
    grid: Grid, results: Sequence[Result], titles: Mapping[str, str], seed: int = 0
) -> str:
    """The page in Markdown: for each prompt the response of every method, with one seed."""
    parts = [
        f"# {grid.concept.title}: responses on {grid.model}\n",
        f"Greedy responses of up to {grid.max_new_tokens} tokens, seed {seed}; the prompts are "
        "evenly spaced over the test examples of each metric, and the same for every method. In "
        "brackets is how the response was classified.\n",
    ]
    for count in grid.num_examples:
        chosen = [
            one for one in results if (one.point.num_examples, one.point.seed) == (count, seed)
        ]
        responses = {one.point.method: {_key(s): s for s in one.samples} for one in chosen}
        prompts = {key: one for found in responses.values() for key, one in found.items()}
        if not prompts:
            continue
        parts.append(f"## {count} examples\n")
        for number, (key, one) in enumerate(prompts.items(), start=1):
            parts.append(f"### {number}. {_title(one)}\n")
            if one.prompt:
                parts.append(f"> {_line(one.prompt[-1].content)}\n")
            if one.prefill:
                parts.append(f"The response is forced to begin with: {_line(one.prefill)}\n")
            lines = [
                f"- **{titles.get(method, method)}** ({found[key].category or 'not classified'}): "
                f"{_line(show_response(found[key]))}"
                for method, found in responses.items()
                if key in found
            ]
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _key(sample: Sample) -> Key:
    return sample.suite, sample.prompt, sample.prefill, sample.group, sample.entity


def _title(sample: Sample) -> str:
    where = f"{sample.suite}, {words(sample.metric)}"
    if sample.prompt:
        return where
    return f"{where}, {f'{_line(sample.group)}, ' if sample.group else ''}id {_line(sample.entity)}"


def _line(text: str) -> str:
    """Text of a model or a user on one line, in which Markdown and HTML mean nothing."""
    text = " ".join(text.split())
    text = text if len(text) <= TEXT_LENGTH else text[:TEXT_LENGTH] + "…"
    for character in "\\`*_{}[]<>#|!&":
        text = text.replace(character, f"\\{character}")
    return text
