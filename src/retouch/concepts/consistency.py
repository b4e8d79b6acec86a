"""Check examples against each other; every error names both rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from retouch.concepts.examples import LocatedExample
from retouch.concepts.location import SourceLocation
from retouch.concepts.normalization import normalized, normalized_prompt


def check_consistent(examples: Sequence[LocatedExample]) -> None:
    """Check that examples and pairs are there once, and that all or none have a split.

    Raises:
        DataError: only some have a split, an example appears twice, or a pair has two examples of
            one label in a split.
    """
    first_of: dict[Hashable, SourceLocation] = {}
    with_splits = any(one.split for one in examples)
    for one in examples:
        example, location = one.example, one.location
        if with_splits and not one.split:
            message = "this row has no split, and others have one."
            hint = "Write `split` in every row or in none."
            raise location.error("split-missing", message, hint, "split")
        first = first_of.setdefault((example.prompt, example.label, example.prefill), location)
        if first is not location:
            message = f"the same prompt and label as in {first.short}."
            raise location.error("example-duplicate", message, "Remove one of the two.")
        if not example.pair:
            continue
        first = first_of.setdefault((example.pair, example.label, one.split), location)
        if first is not location:
            message = (
                f"the pair `{example.pair}` already has an example labelled `{example.label}`, in "
                f"{first.short}."
            )
            hint = "Give a pair one example per label, and the other examples another pair."
            raise location.error("pair-duplicate", message, hint, "pair")


def check_contradictions(examples: Sequence[LocatedExample], *, elicited: bool) -> None:
    """Check that no prompt has two uses that exclude each other.

    Prompts are equal if they are so after NFKC, case folding and collapsing of whitespace.

    Args:
        examples: source, target and retain examples, with the targets that their responses make.
        elicited: whether a context elicits the target, so that it needs no other difference.

    Raises:
        DataError: a prompt is in source and target and no response tells them apart; in source and
            retain; or in two splits.
    """
    split_of: dict[Hashable, LocatedExample] = {}
    used: dict[Hashable, dict[str, LocatedExample]] = {}
    for one in examples:
        prompt, prefill = normalized_prompt(one.example), normalized(one.example.prefill)
        if not prompt and not prefill:
            continue  # running text that is a response alone
        first = split_of.setdefault(prompt or prefill, one)
        if first.split != one.split:
            message = (
                f"the prompt of {first.location.short}, which is in the split `{first.split}`, is "
                f"in `{one.split}` here."
            )
            raise one.location.error("prompt-in-two-splits", message, "Move one of the two rows.")
        of_label = used.setdefault((prompt, prefill), {})
        of_label.setdefault(one.example.label, one)
        source = of_label.get("negative")
        if source and (retained := of_label.get("retain")):
            first = retained if one is source else source
            message = f"the prompt of {first.location.short} is moved there and retained here."
            if one is source:
                message = f"the prompt of {first.location.short} is retained there and moved here."
            hint = "Remove one of the two rows."
            raise one.location.error("source-and-retain", message, hint)
        if source and not elicited and (target := of_label.get("positive")):
            _check_difference(source, target, one)


def _check_difference(source: LocatedExample, target: LocatedExample, last: LocatedExample) -> None:
    """Check that the responses to a prompt in source and target differ."""
    response = target.example.response
    if response is not None and response != source.example.response:
        return
    code, hint = "target-same-as-source", "Remove one of the two rows."
    if source.location == target.location:
        message = "source and target have the same response, so there is nothing to move towards."
        raise last.location.error(code, message, "Remove the row.")
    first = source if last is target else target
    message = (
        f"the prompt of {first.location.short}, which is `{first.example.label}`, is "
        f"`{last.example.label}` here, and no response tells the two apart."
    )
    raise last.location.error(code, message, f"{hint} Or give the `positive` one a response.")
