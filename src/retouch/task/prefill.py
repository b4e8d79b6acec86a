"""Examples with prefilled responses, as in prefill attacks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from retouch.concepts.chat import TokenizedChat, prompt_ids, tokenize_chat
from retouch.concepts.concept import DirectionSpec, Example
from retouch.core.config import DataConfig
from retouch.core.types import Progress, no_progress
from retouch.models.base_responses import cached_base_responses
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Decoding
from retouch.task.base_responses import Shows, join
from retouch.task.sampling import SampledExamples

BEGINNING = 3  # tokens of a response that the base model goes on with after another prompt
TOP_K = 20  # most likely first tokens that a response which is forced begins with

Opening = tuple[int, ...]
"""Token ids of a response, the beginning of which is forced as a prefill."""


@dataclass(frozen=True)
class Prefills:
    """What the prefilled examples of an edit begin with.

    Attributes:
        source: the index of an example, the prefill that is forced on it, and the whole response
            that this is the beginning of; of the source examples, followed by the retain set.
        retain: retain examples with a prefill, which the base model continues.
    """

    source: list[tuple[int, Opening, Opening]]
    retain: list[Example]


@dataclass(frozen=True)
class PrefilledExamples:
    """Source examples with a prefill.

    Attributes:
        source: with the target response after the prefill.
        counterparts: the target counterpart of each.
        rejected: with the rest of the complying response after the prefill.
        index: for each, the index of the source example that it was made from.
    """

    source: list[TokenizedChat]
    counterparts: list[TokenizedChat]
    rejected: list[TokenizedChat]
    index: list[int]


def sample_prefills(
    editable: EditableModel,
    rng: random.Random,
    sampled: SampledExamples,
    spec: DirectionSpec,
    data: DataConfig,
    seed: int,
    shows: Shows | None = None,
    progress: Progress = no_progress,
) -> Prefills:
    """Choose examples to prefill, and sample the responses whose beginnings are forced.

    Source examples get in turn the beginning of a response to themselves, and to a retain example.
    As many retain examples get that of a response to themselves: a model that learned to refuse
    after a prefill alone would refuse them too. Responses that show the desired behaviour, such as
    refusals, are forced on neither.

    Target examples of the retain set, to which the base model responds as desired already, need no
    label: up to as many of them get the beginning of a response to a source example, which the base
    model goes on with.
    """
    # Of examples with the same counterpart, such as a request and its wrapped form, one.
    plain = [i for i, one in enumerate(sampled.source) if one.label == spec.source[0]]
    counts = prefill_counts(len(plain), data.prefills_per_example)
    index = [plain[i] for i, count in enumerate(counts) for _ in range(count)]
    edited = {*spec.source, *spec.target}
    kept = [one for one in sampled.retain if one.prompt and one.label not in edited]
    kept = [one for one in kept if not one.prefill]
    retain = rng.sample(kept, min(len(index), len(kept)))
    targets = [
        i
        for i, one in enumerate(sampled.retain)
        if one.label in spec.target and one.prompt and not one.prefill
    ]
    targets = rng.sample(targets, min(len(index), len(targets)))
    sample = partial(
        _sample_openings, editable, data.prefill_tokens, seed, shows=shows, progress=progress
    )
    own = sample([sampled.source[i] for i in index])
    of_retain = sample(retain)
    beginnings = [rng.choice(own)[:BEGINNING] for _ in targets] if own else []
    chosen = [sampled.retain[i] for i in targets] if own else []
    of_targets = sample(chosen, beginnings)

    def cut(opening: Opening) -> Opening:
        return opening[: _prefill_length(rng, max(1, len(opening) - 1))]

    source = []
    for number, (i, opening) in enumerate(zip(index, own, strict=False)):
        if number % 2 and of_retain:
            opening = rng.choice(of_retain)
        source.append((i, cut(opening), opening))
    for i, opening in zip(targets, of_targets, strict=False):
        source.append((len(sampled.source) + i, cut(opening), opening))
    pairs = zip(retain, of_retain, strict=False)  # there may be none that suits
    return Prefills(source, [_prefilled(editable, one, cut(opening)) for one, opening in pairs])


def _sample_openings(
    editable: EditableModel,
    max_tokens: int,
    seed: int,
    examples: Sequence[Example],
    beginnings: Sequence[Opening] = (),
    *,
    shows: Shows | None,
    progress: Progress,
) -> list[Opening]:
    """A sampled response of the base model to each example, of `max_tokens` tokens.

    There are none if all of them show the desired behaviour. Greedy responses begin in few ways,
    and an attacker may begin one in any: of several for an example, every other one has a first
    token that is drawn from the most likely ones. A response that would end earlier goes on, since
    a prefill may be longer than what the model itself would say.
    """
    tokenizer = editable.tokenizer
    found: dict[int, Opening] = {}
    forced = list(beginnings) or [()] * len(examples)
    prompts = [
        (*prompt_ids(tokenizer, one.prompt), *beginning)
        for one, beginning in zip(examples, forced, strict=True)
    ]
    repeats: list[int] = []
    counts: Counter[Opening] = Counter()
    for prompt in prompts:
        repeats.append(counts[prompt])
        counts[prompt] += 1
    for number in range(max(repeats, default=-1) + 1):  # each repetition is another sample
        chosen = [i for i, count in enumerate(repeats) if count == number]
        decoding = Decoding(
            top_k=TOP_K, branch=number % 2 > 0, seed=1000 * seed + number, min_new_tokens=max_tokens
        )
        responses = cached_base_responses(
            editable,
            [prompts[i] for i in chosen],
            max_new_tokens=max_tokens,
            decoding=decoding,
            progress=progress,
        )
        for i, one in zip(chosen, responses, strict=True):
            beginning = str(tokenizer.decode(list(forced[i]), skip_special_tokens=True))
            text = join(beginning, one.text)
            chat = tokenize_chat(tokenizer, examples[i].prompt, text, truncated=True)
            if one.text and not (shows and shows(examples[i], text)):
                found[i] = chat.ids[chat.start :]
    suitable = list(found.values())
    if not suitable:
        return []
    # An example whose own response does not suit gets that of another one.
    return [found.get(i, suitable[i % len(suitable)]) for i in range(len(examples))]


def _prefilled(editable: EditableModel, example: Example, opening: Opening) -> Example:
    """A retain example whose response begins with the opening."""
    text = str(editable.tokenizer.decode(list(opening), skip_special_tokens=True))
    return replace(example, prefill=text, response=None)


def add_prefills(
    source: Sequence[TokenizedChat],
    counterparts: Sequence[TokenizedChat],
    prefills: Prefills,
    counterpart_prompts: bool = True,
) -> PrefilledExamples:
    """Make source examples with prefills: recovery examples (Qi et al. 2024, arXiv 2406.05946).

    The prompt is in turn the source's and its counterpart's, unless that is the source's own under
    a context. The target response follows in all of them, so they share the counterpart.

    Args:
        source: source prompts with the target response, followed by the retain set.
        counterparts: the target counterparts, followed by the retain set.
        prefills: what is forced.
        counterpart_prompts: whether half of them have the counterpart's prompt.
    """
    made = PrefilledExamples([], [], [], [])
    for number, (i, prefill, opening) in enumerate(prefills.source):
        chat, counterpart = source[i], counterparts[i]
        prompter = counterpart if counterpart_prompts and number // 2 % 2 else chat
        prompt = prompter.ids[: prompter.start]
        start = len(prompt) + len(prefill)
        response = chat.ids[chat.start :]
        made.source.append(TokenizedChat((*prompt, *prefill, *response), start, len(prefill)))
        made.counterparts.append(counterpart)
        made.rejected.append(TokenizedChat((*prompt, *opening), start))
        made.index.append(i)
    return made


def _prefill_length(rng: random.Random, longest: int) -> int:
    """A length of 1 to `longest` tokens, as often 1 as 2 to 3 or 4 to 7.

    A prefill of an attack is seldom long, and a short one leaves more continuations.
    """
    return min(longest, int((longest + 1) ** rng.random()))


def prefill_counts(num_examples: int, per_example: float) -> list[int]:
    """How many prefilled examples are made from each source example, spread evenly."""
    made = [int(per_example * i) for i in range(num_examples + 1)]
    return [after - before for before, after in pairwise(made)]
