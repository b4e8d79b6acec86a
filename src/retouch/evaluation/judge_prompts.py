"""The prompts of a judge as token ids, with request and response as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retouch.core.chat_template import TemplateFailure, apply_template
from retouch.core.errors import ConfigError, DataError, ModelError
from retouch.evaluation.judge_formats import CHAT, SLOTS, JudgeFormat

Slot = Literal["", "request", "response"]

# What a chat template is tried with: no template strips or rewrites the words, and none writes tabs
# next to them, so that a missing tab was stripped.
_PROBES: dict[Slot, str] = {"request": "REQUEST-SLOT", "response": "RESPONSE-SLOT"}


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """The prompt of a judge.

    Attributes:
        ids: its token ids.
        truncated: whether a part of the response was left out.
        contains_tags: whether the request or the response contains a tag of the format, or the text
            of a special token.
    """

    ids: tuple[int, ...]
    truncated: bool
    contains_tags: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of a template: text of its own, or a slot, which may strip what is inserted."""

    text: str = ""
    slot: Slot = ""
    strips: bool = False


class PromptEncoder:
    """Writes the prompts of a format and encodes them.

    Request and response are data: each is inserted once, a slot in an inserted text is not filled,
    and neither passes through the chat template. Special tokens in them, such as `</s>` or
    `<|im_end|>`, are encoded as plain text. A prompt without any is tokenized as a whole, as the
    publishers do. A tag that is plain text for the tokenizer too, such as `[/INST]` for Llama 2,
    cannot be told from the template's own; prompts where one was inserted are marked.
    """

    def __init__(self, form: JudgeFormat, tokenizer: Any, max_tokens: int | None = None) -> None:
        self.format, self.tokenizer, self.max_tokens = form, tokenizer, max_tokens
        chat = form.template == CHAT
        self._segments = _chat_segments(form, tokenizer) if chat else _segments(form.template)
        self._adds = form.add_special_tokens and not chat
        self._special = _special_tokens(tokenizer)
        # Characters that the tokenizer does not know are no special tokens.
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
        unknown = {tokenizer.unk_token_id} - ends
        self._counted = set(self._special.values()) - unknown
        # The special tokens of every prompt: those of the template, and the tokenizer's own.
        self._expected = self._specials_in(self._tokenize(self.text("Hi.", "Hi.")))

    def text(self, request: str, response: str) -> str:
        """The prompt as text."""
        return "".join(text for text, _ in self._fill(request, response))

    def encode(self, request: str, response: str) -> JudgePrompt:
        """The prompt as token ids, with a response that is truncated if it is too long.

        Raises:
            DataError: the request is too long for the model.
            ModelError: a special token cannot be encoded as text.
        """
        kept = self._shorten(response, self.format.max_response_tokens)
        ids = self._encode(request, kept)
        while self.max_tokens is not None and len(ids) > self.max_tokens:
            if not kept:
                message = f"A prompt of the judge has {len(ids)} tokens without the response."
                hint = f"It reads {self.max_tokens}: judge shorter requests than {request[:60]!r}."
                raise DataError(message, hint, code="judge-request-too-long")
            count, excess = len(self._plain_tokens(kept)), len(ids) - self.max_tokens
            shorter = self._shorten(kept, max(0, count - excess))
            # Every pass makes the text shorter, however a tokenizer counts.
            cut = kept[:-1] if self.format.truncate == "end" else kept[1:]
            kept = shorter if len(shorter) < len(kept) else cut
            ids = self._encode(request, kept)
        marked = any(tag in f"{request}\n{response}" for tag in (*self.format.tags, *self._special))
        return JudgePrompt(tuple(ids), kept != response, marked)

    def _fill(self, request: str, response: str) -> list[tuple[str, bool]]:
        """The parts of a prompt, and whether each is inserted."""
        values: dict[Slot, str] = {"request": request, "response": response}
        return [
            (values[one.slot].strip() if one.strips else values[one.slot], True)
            if one.slot
            else (one.text, False)
            for one in self._segments
        ]

    def _encode(self, request: str, response: str) -> list[int]:
        parts = self._fill(request, response)
        inserted = [text for text, is_inserted in parts if is_inserted]
        ids = self._tokenize("".join(text for text, _ in parts))
        safe = not any(token in text for token in self._special for text in inserted)
        if safe and self._specials_in(ids) == self._expected:
            return ids
        ids = self._encode_apart(parts)
        if self._specials_in(ids) != self._expected:
            message = "A special token in a response cannot be encoded as plain text."
            hint = f"Use another tokenizer for the judge format {self.format.name}."
            raise ModelError(message, hint, code="judge-special-tokens")
        return ids

    def _encode_apart(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode the template's special tokens as such, and all other text as plain text."""
        before, after = self._added_tokens() if self._adds else ([], [])
        ids, plain = list(before), ""
        longest_first = sorted(self._special, key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        for text, inserted in parts:
            for part in (text,) if inserted else pattern.split(text):
                if inserted or part not in self._special:
                    plain += part
                    continue
                ids += [*self._plain_tokens(plain), self._special[part]]
                plain = ""
        return [*ids, *self._plain_tokens(plain), *after]

    def _added_tokens(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text."""
        full, plain = self._tokenize("Hi."), self._plain_tokens("Hi.")
        starts = range(len(full) - len(plain) + 1)
        start = next(i for i in starts if full[i : i + len(plain)] == plain)
        return full[:start], full[start + len(plain) :]

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=self._adds, verbose=False)[
            "input_ids"
        ]
        return ids

    def _plain_tokens(self, text: str) -> list[int]:
        """The tokens of a text without special tokens."""
        ids: list[int] = self._plain(text)["input_ids"] if text else []
        return ids

    def _plain(self, text: str, **options: bool) -> Any:
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False, **options
        )

    def _specials_in(self, ids: Sequence[int]) -> list[int]:
        return [one for one in ids if one in self._counted]

    def _shorten(self, text: str, keep: int | None) -> str:
        """The text of the first or last tokens, without a character that would be cut."""
        if keep is None or len(ids := self._plain_tokens(text)) <= keep:
            return text
        if keep == 0:
            return ""
        end = self.format.truncate == "end"
        if not getattr(self.tokenizer, "is_fast", False):
            return str(self.tokenizer.decode(ids[:keep] if end else ids[-keep:]))
        spans = self._plain(text, return_offsets_mapping=True)["offset_mapping"]
        if end:
            return text[: min(spans[keep - 1][1], spans[keep][0])]
        return text[max(spans[-keep][0], spans[-keep - 1][1]) :]


def _segments(template: str) -> list[_Segment]:
    """Split a template at its slots."""
    parts = SLOTS.split(template)  # text, slot, text, ...
    return [
        _Segment(slot="request" if part == "request" else "response") if i % 2 else _Segment(part)
        for i, part in enumerate(parts)
    ]


def _chat_segments(form: JudgeFormat, tokenizer: Any) -> list[_Segment]:
    """Split the text that a chat template writes for two turns at their contents.

    Raises:
        ConfigError: there is no chat template, or it does not write both contents once.
    """
    if not getattr(tokenizer, "chat_template", None):
        message = f"The judge format {form.name} is a chat template, and the tokenizer has none."
        hint = "Give a `format` with a template of its own, or a tokenizer with `chat_template`."
        raise ConfigError(message, hint, code="judge-chat-template")
    padded = {slot: f"\t{probe}\t" for slot, probe in _PROBES.items()}
    # Some templates expect a list of parts in place of a text (Llama Guard 3 1B).
    for contents in (padded, {k: [{"type": "text", "text": v}] for k, v in padded.items()}):
        turns = [
            {"role": "user", "content": contents["request"]},
            {"role": "assistant", "content": contents["response"]},
        ]
        try:
            text = apply_template(
                tokenizer, turns, add_generation_prompt=form.add_generation_prompt
            )
        except TemplateFailure:
            continue
        parts = re.split(rf"(\t?(?:{'|'.join(_PROBES.values())})\t?)", text)
        slots = [part.strip("\t") for part in parts[1::2]]
        if sorted(slots) == sorted(_PROBES.values()):
            names = {probe: slot for slot, probe in _PROBES.items()}
            return [
                _Segment(slot=names[part.strip("\t")], strips="\t" not in part)
                if i % 2
                else _Segment(part)
                for i, part in enumerate(parts)
            ]
    message = "The chat template of the judge does not write a request and a response once each."
    hint = "Give a `format` with a template of its own."
    raise ConfigError(message, hint, code="judge-chat-template")


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens by their text.

    A token that is added but not special, such as Qwen's `<think>`, is a part of the text.
    """
    found = {
        str(token.content): int(index)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return found | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
