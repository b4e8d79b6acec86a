"""What a contrast check finds: fine, a warning, or an error that stops the edit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from retouch.contrast.report import ContrastReport
from retouch.core.finding import Finding, Level
from retouch.core.formatting import show_interval, show_value
from retouch.core.types import Score

# Generated targets: below the first rate with the second above the interval, the edit is stopped.
TARGET_ERROR, TARGET_ERROR_HIGH, TARGET_WARNING = 0.2, 0.5, 0.5
SOURCE_DONE = 0.95
WEAK_GAP = 0.1  # nats a token
WIDE_INTERVAL = 0.5
SEPARABLE = 0.6

GIVE_RESPONSES = (
    "Give the target responses (column `response`), elicit them with a `context` of the direction "
    "(a system turn, demonstrations or a prefix), or take a model that behaves so."
)


def find_findings(
    report: ContrastReport,
    *,
    elicited: bool,
    same: bool = False,
    choices: bool = False,
    instruction: bool = False,
) -> list[Finding]:
    """The findings of the measurements.

    Args:
        report: the measurements.
        elicited: whether the target is under a context.
        same: whether every source prompt is its own target prompt.
        choices: whether responses that begin with the effect's choices are trained on.
        instruction: whether the target is the source under an instruction.
    """
    responses_given = report.num_given * 2 >= report.num_examples
    found = [
        *_target_findings(
            report, elicited=elicited, responses_given=responses_given, instruction=instruction
        ),
        *_gap_findings(report, same=same, responses_given=responses_given),
    ]
    if report.given is not None and report.given.value < TARGET_WARNING:
        found.append(
            Finding(
                "warning",
                "contrast-responses",
                f"Of the given target responses, {_rate(report.given)} {_desired(report)}.",
                "Correct the responses, or the `effect` of the direction.",
            )
        )
    if report.source is not None and report.source.value >= SOURCE_DONE:
        found.append(
            Finding(
                "warning",
                "contrast-done",
                f"The base behaves as desired already: {_rate(report.source)} of its responses to "
                f"the source {_desired(report)}.",
                "Use source prompts to which it responds otherwise.",
            )
        )
    states = report.separability
    if states is not None and states.value < SEPARABLE and not same and not choices:
        found.append(
            Finding(
                "warning",
                "contrast-states",
                f"The states of source and target differ little at the layers "
                f"{', '.join(map(str, report.layers))}: classified with accuracy {_rate(states)}.",
                "Use target prompts that differ more from the source, or more examples.",
            )
        )
    return found or [Finding("ok", "contrast", _summary(report))]


def _target_findings(
    report: ContrastReport, *, elicited: bool, responses_given: bool, instruction: bool
) -> Iterator[Finding]:
    target, source, code = report.target, report.source, "contrast-target"
    if target is None or (responses_given and not elicited):
        return
    message = f"Of the base's responses to the target, {_rate(target)} {_desired(report)}"
    if responses_given:
        if target.value < TARGET_WARNING:
            message += ": the context does not elicit the target, and the given responses teach it."
            hint = "Use a stronger context, or none."
            yield Finding("warning", code, message, hint)
        return
    if target.value < TARGET_ERROR and target.high < TARGET_ERROR_HIGH:
        message += (
            ": it does not follow the instruction when it is prompted with it."
            if instruction
            else ": there is nothing to move the source towards."
        )
        yield Finding("error", code, message, GIVE_RESPONSES)
    elif target.value < TARGET_WARNING:
        yield Finding("warning", code, f"{message}.", GIVE_RESPONSES)
    elif source is not None and target.value <= source.value < SOURCE_DONE:
        message += f", of those to the source {_rate(source)}."
        yield Finding("warning", code, message, GIVE_RESPONSES)
    if target.high - target.low > WIDE_INTERVAL:
        message = f"The rates are of {target.n} responses, and their intervals are wide."
        yield Finding("warning", "contrast-few", message, "Use more examples.")


def _gap_findings(
    report: ContrastReport, *, same: bool, responses_given: bool
) -> Iterator[Finding]:
    gap, code = report.gap, "contrast-gap"
    if gap is None:
        return
    if same:
        message = (
            "Source and target prompts are the same, so their states do not differ: only the loss "
            "of the target responses (`sft_weight`) teaches them."
        )
        level: Level = "warning" if responses_given else "error"
        yield Finding(level, code, message, "" if responses_given else GIVE_RESPONSES)
        return
    message = (
        f"The target responses are {_nats(abs(gap.value))} a token "
        f"{'likelier' if gap.value > 0 else 'less likely'} after the target prompts than after the "
        f"source prompts (95 % interval {show_interval(gap, 'nats')}, n {gap.n})"
    )
    if gap.value <= 0:
        level = "warning" if responses_given else "error"
        message += ": the states of the target do not lead to them."
        yield Finding(level, code, message, GIVE_RESPONSES)
    elif gap.low <= 0 or gap.value < WEAK_GAP:
        yield Finding("warning", code, f"{message}, a weak contrast.", GIVE_RESPONSES)


def _desired(report: ContrastReport) -> str:
    """The predicate of responses that behave as the direction desires."""
    return f"{'show' if report.better == 'higher' else 'lack'} `{report.metric}`"


def _rate(score: Score) -> str:
    interval = show_interval(score, "rate")
    return f"{show_value(score.value, 'rate')} (95 % interval {interval}, n {score.n})"


def _nats(value: float) -> str:
    return "0 nats" if math.isclose(value, 0) else f"{show_value(value, 'nats')} nats"


def _summary(report: ContrastReport) -> str:
    """The measurements in a sentence."""
    parts = []
    for name, score in (("source", report.source), ("target", report.target)):
        if score is not None:
            parts.append(f"{name} {show_value(score.value, 'rate')}")
    if parts:
        parts = [f"{report.metric} of responses: {', '.join(parts)}"]
    if report.gap is not None:
        parts.append(f"gap {_nats(report.gap.value)} a token")
    if report.separability is not None:
        parts.append(f"states classified {show_value(report.separability.value, 'rate')}")
    return "; ".join(parts) or "nothing to compare: source and target have the same examples"
