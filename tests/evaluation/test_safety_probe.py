"""The safety probe: which drops count, and what it asks."""

from __future__ import annotations

import pytest

from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.core.errors import RunError
from retouch.core.metrics import Metrics
from retouch.core.serialization import to_plain
from retouch.core.types import Record, Score
from retouch.evaluation import safety_probe
from retouch.evaluation.evaluate import Evaluation
from retouch.evaluation.safety_probe import (
    REQUESTS_PER_PACK,
    SafetyProbe,
    probe_safety,
    recorded_probe,
)
from retouch.models import adapters

BEFORE = Score(0.6, 0.5, 0.7, 64)


def probed(monkeypatch: pytest.MonkeyPatch, after: float | None, p: float) -> SafetyProbe:
    """The probe of an edit after which `refused` has this value."""
    score = None if after is None else Score(after, after - 0.1, after + 0.1, 64)
    record = Record("safety-probe", "refused", "rate", "higher", BEFORE, score)
    found = Evaluation(Metrics([record]), [], p_values={("safety-probe", "refused"): p})
    monkeypatch.setattr(safety_probe, "evaluate", lambda *_, **__: found)
    return probe_safety(tiny_editable())


@pytest.mark.parametrize(
    ("after", "p", "weakened"),
    [
        (0.3, 0.001, True),
        (0.3, 0.06, False),  # not significant
        (0.55, 0.001, False),  # within the interval of the base
        (0.9, 0.001, False),  # it refuses more
        (None, 1.0, False),  # nothing was edited
    ],
)
def test_only_a_significant_drop_below_the_interval_counts(
    monkeypatch: pytest.MonkeyPatch, after: float | None, p: float, weakened: bool
) -> None:
    assert probed(monkeypatch, after, p).weakened == (("refused",) if weakened else ())


def test_every_model_gets_the_same_direct_requests() -> None:
    concept = safety_probe._requests()
    requests = concept.select("test", ["request"])
    assert len(requests) == len({one.last_turn for one in requests}) == 2 * REQUESTS_PER_PACK
    assert not any(one.prefill or len(one.prompt) > 1 for one in requests)
    for label in ("refusal", "compliance"):
        written = concept.select("test", [label])
        assert [one.prompt for one in written] == [one.prompt for one in requests]
        assert len({one.response for one in written}) == 1


def test_base_and_edited_model_are_measured() -> None:
    editable = tiny_editable()
    base = probe_safety(editable)
    assert [record.metric for record in base.metrics] == ["refused", "refusal_log_odds"]
    assert all(record.after is None for record in base.metrics)
    assert base.weakened == ()
    adapters.attach(editable, [0], LoraConfig(r=2), seed=0)
    probe = probe_safety(editable)
    for before, record in zip(base.metrics, probe.metrics, strict=True):
        assert record.before == before.before
        assert record.after is not None
    assert probe.weakened == ()  # a new adapter changes nothing


def test_what_a_run_records_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = probed(monkeypatch, 0.3, 0.001)
    assert recorded_probe({"safety": {"probe": to_plain(probe)}}) == probe
    assert recorded_probe({}) is None
    for broken in ({"probe": {"metrics": 3}}, {"probe": None}, {}, [], 3):
        with pytest.raises(RunError) as raised:
            recorded_probe({"safety": broken})
        assert raised.value.code == "file-broken"
