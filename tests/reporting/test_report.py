"""The report: one offline page in which no text of a model or a user is markup."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from retouch.concepts.concept import Concept, DirectionSpec, MetricSpec
from retouch.core import formatting
from retouch.core.config import EditConfig
from retouch.core.types import Message, Record, RoundEvent, Sample, Score
from retouch.reporting.report import (
    MAX_PAIRS,
    choose_pairs,
    headline,
    pair_samples,
    render_report,
)

CONCEPT = Concept(
    "safety",
    "Safety",
    "Declines.",
    {},
    {"raise": DirectionSpec(("attack",), ("direct",), ("capability",))},
)
RECORDS = [
    Record(
        "safety",
        "attack_refusal",
        "rate",
        "higher",
        Score(0.05, 0.02, 0.11, 200),
        Score(0.97, 0.94, 0.99, 200),
    ),
    Record("capability", "drift", "nats a token", "lower", Score(0, 0, 0, 60)),
]
EVENTS = [
    RoundEvent(i, 4, {"adversarial": 0.7}, 0.9 - i / 50, -1 / i, 0.001 * i, i == 3, 1.0 * i)
    for i in range(1, 5)
]
PROVENANCE: dict[str, Any] = {
    "layers": {
        "adapted": [3],
        "read": [4],
        "recovery": {"0": 0.1, "3": 0.9},
        "reason": "patching layer 3 recovers 90%",
    }
}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def responses(metric: str, number: int, base: str, edited: str, group: str = "") -> list[Sample]:
    prompt = (Message("user", f"{metric} {number}?"),)
    return [
        Sample("safety", metric, "base", prompt, base, "answer", 0.0, group=group),
        Sample("safety", metric, "edited", prompt, edited, "refuse", 1.0, group=group),
    ]


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(samples: list[Sample], **changes: Any) -> str:
    values: dict[str, Any] = {
        "config": EditConfig(),
        "concept": CONCEPT,
        "records": RECORDS,
        "samples": samples,
        "events": EVENTS,
        "provenance": PROVENANCE,
    }
    return render_report(**{**values, **changes})


def test_texts_of_models_and_users_are_escaped() -> None:
    samples = [
        Sample("safety", "m", who, (Message("user", EVIL),), EVIL, EVIL, 0.0, EVIL, EVIL)
        for who in ("base", "edited")
    ]
    concept = Concept("safety", EVIL, EVIL, {}, {}, weakens="lower")
    config = EditConfig(model=EVIL, direction="lower", allow_weakening=EVIL)
    html = page(samples, concept=concept, config=config, provenance={"note": EVIL})
    parsed = Page(html)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert parsed.text.count(EVIL) >= 6


def test_the_page_loads_nothing_from_outside() -> None:
    parsed = Page(page(responses("m", 1, "Sure.", "No.")))
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for tag, attributes in parsed.tags:
        assert tag not in {"script", "link", "iframe"}
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")  # type: ignore[union-attr]


def test_the_plots_are_png_with_alternative_texts() -> None:
    images = [attributes for tag, attributes in Page(page([])).tags if tag == "img"]
    assert len(images) == 2
    for image in images:
        data = re.sub("^data:image/png;base64,", "", image["src"] or "")
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert image["alt"]


def test_the_page_has_the_headline_the_table_and_the_layers() -> None:
    text = Page(page([])).text
    for part in (
        "5.0 %",
        "97.0 %",
        "94.0–99.0",
        "attack refusal",
        "better",
        "nats a token",
        "adapted layers 3",
        "layer 3 recovers",
    ):
        assert part in text


@pytest.mark.parametrize("changes", [{"records": []}, {"events": []}, {"provenance": {}}])
def test_the_page_does_without_metrics_events_or_provenance(changes: dict[str, Any]) -> None:
    assert "Configuration" in page([], **changes)


def test_pairs_have_the_same_prompt() -> None:
    samples = [*responses("a", 1, "Sure.", "No."), *responses("a", 2, "Yes.", "Never.")]
    pairs = pair_samples(samples[::-1])
    assert {(p.base.response, p.edited.response) for p in pairs} == {
        ("Sure.", "No."),
        ("Yes.", "Never."),
    }


def test_chosen_pairs_are_of_every_metric_and_differ_where_possible() -> None:
    samples = []
    for metric in ("a", "b", "c"):
        for number in range(20):
            same = number < 15
            samples += responses(metric, number, "Sure.", "Sure." if same else "No.")
    pairs = choose_pairs(samples)
    assert len(pairs) == MAX_PAIRS
    assert {pair.edited.metric for pair in pairs} == {"a", "b", "c"}
    assert all(pair.base.response != pair.edited.response for pair in pairs)


def test_the_headline_is_measured_on_source_examples() -> None:
    spec = MetricSpec("capability", "drift", ("attack",), "kl_tokens")
    concept = Concept("c", "", "", {}, CONCEPT.directions, metrics=(spec,))
    assert headline(concept, RECORDS) == RECORDS[1]
    assert headline(CONCEPT, RECORDS) == RECORDS[0]
    assert headline(CONCEPT, []) is None


def test_a_change_needs_intervals_without_overlap() -> None:
    def record(better: Any, after: Score | None) -> Record:
        return Record("s", "m", "rate", better, Score(0.5, 0.4, 0.6, 9), after)

    up, near = Score(0.9, 0.8, 1.0, 9), Score(0.6, 0.5, 0.7, 9)
    assert formatting.change(record("higher", up)) == "better"
    assert formatting.change(record("lower", up)) == "worse"
    assert formatting.change(record("none", up)) == "changed"
    assert formatting.change(record("higher", near)) == "unclear"
    assert formatting.change(record("higher", None)) == ""


def test_the_page_has_plain_words() -> None:
    parsed = Page(page(responses("m", 1, "Sure.", "No.")))
    alternatives = [attributes.get("alt") or "" for tag, attributes in parsed.tags if tag == "img"]
    text = " ".join([parsed.text, *alternatives])
    for word in ("game", "twin", "wanted", "guard", "reply", "hold", "kept"):
        assert not re.search(rf"\b{word}", text, re.IGNORECASE), word


def test_the_outcome_is_the_first_line_and_its_status_a_class() -> None:
    outcome = {"status": "failed", "text": "FAILED: nothing <moved>."}
    html = page([], provenance={**PROVENANCE, "outcome": outcome})
    parsed = Page(html)
    assert ("p", {"class": "outcome failed"}) in parsed.tags
    assert html.index("FAILED: nothing") < html.index("Before and after")
    assert "nothing <moved>" in parsed.text
    assert "outcome failed" not in page([])


def test_a_response_that_was_cut_is_marked() -> None:
    whole, cut = responses("m", 1, "To begin", "I refuse")
    parsed = Page(page([whole, replace(cut, truncated=True)]))
    assert "I refuse…" in parsed.text
    assert "To begin…" not in parsed.text
