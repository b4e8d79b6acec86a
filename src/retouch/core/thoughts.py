"""The thought that a reasoning model writes before its answer, as delimited by markers in the text.

`after_thought` separates it from the answer. A chat template may write the opening marker into the
prompt (`open_thought`); then what the model generates has only the closing one.
"""

from __future__ import annotations

import re

# Opening and closing markers: DeepSeek-R1, Qwen3 and many others; Seed-OSS; Magistral; Kimi;
# OpenThinker; Command A Reasoning; Gemma.
_MARKERS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning")},
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
}
_CLOSING = {opening.casefold(): closing for opening, closing in _MARKERS.items()}
_OPENINGS = "|".join(map(re.escape, _MARKERS))
_OPENED = re.compile(rf"\s*({_OPENINGS})", re.IGNORECASE)
_OPENING = re.compile(_OPENINGS, re.IGNORECASE)
_CLOSED = re.compile("|".join(map(re.escape, _MARKERS.values())), re.IGNORECASE)
_ANSWER_MARKERS = re.compile(
    r"^\s*(?:<(?:answer|response|solution)>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)"
    r"|(?:</(?:answer|response|solution)>|<\|end_of_solution\|>|<\|END_RESPONSE\|>)\s*$",
    re.IGNORECASE,
)
# OpenAI's Harmony format: channels, of which `final` is the answer. Without its special tokens,
# `analysisThe user ...assistantfinalThe answer`.
_CHANNEL = "<|channel|>"
_HARMONY = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>|\s*(?:analysis|commentary)(?=[A-Z])"
)
_FINAL = re.compile(
    r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal"
)
_HARMONY_END = re.compile(r"<\|(?:end|return|call)\|>\s*$")

TOKENS = frozenset((*_MARKERS, *_MARKERS.values()))
"""Special tokens that decoding keeps, since they separate the thought from the answer."""
HARMONY_TOKENS = frozenset((_CHANNEL, "<|message|>", "<|start|>", "<|end|>"))
"""The same of a tokenizer that has `<|channel|>`; elsewhere the last of them ends a response."""


def kept_tokens(special: frozenset[str]) -> frozenset[str]:
    """Which of a tokenizer's special tokens decoding keeps."""
    return special & (TOKENS | HARMONY_TOKENS if _CHANNEL in special else TOKENS)


def mentions_thought(template: str) -> bool:
    """Whether a chat template contains a marker that opens a thought."""
    return _OPENING.search(template) is not None


def open_thought(turn: str) -> str:
    """The marker of the thought that the beginning of a response leaves open; empty if none."""
    found = list(_OPENING.finditer(turn))
    return "" if not found or _CLOSED.search(turn, found[-1].end()) else found[-1][0]


def without_opening(response: str, marker: str) -> str:
    """A response without the marker of its thought, which the prompt has already."""
    return response.removeprefix(marker).lstrip("\n") if marker else response


def after_thought(response: str, prefill: str = "") -> str | None:
    """The part of a response after its thought, without markers around it.

    Args:
        response: the response; one without a thought is returned as it is.
        prefill: what the response continues. It may end within a thought.

    Returns:
        The answer, empty if there is none yet; None if the thought is not closed.
    """
    if (opened := _OPENED.match(prefill)) and not _CLOSED.search(prefill):
        response = opened[1] + response
    if _HARMONY.match(response):
        finals = list(_FINAL.finditer(response))
        return _HARMONY_END.sub("", response[finals[-1].end() :]).strip() if finals else None
    rest = response
    if not _OPENED.match(rest) and (closed := _CLOSED.search(rest)):
        rest = rest[closed.end() :]  # the prompt opens the thought
    while opened := _OPENED.match(rest):
        closing = re.compile(re.escape(_CLOSING[opened[1].casefold()]), re.IGNORECASE)
        closed = closing.search(rest)
        if closed is None:
            return None
        rest = rest[closed.end() :]
    return rest if rest is response else _ANSWER_MARKERS.sub("", rest).strip()
