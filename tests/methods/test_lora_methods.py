from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from retouch.concepts.concept import Concept, DirectionSpec, Example
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.core.types import Message
from retouch.methods import circuit_breaker, dpo, lorra, paired_matching
from retouch.methods.lora import BestCheckpoint, base_kl, cycle, response_loss
from retouch.methods.registry import get_method
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import make_batches
from retouch.task.task import EditTask, build_task
from retouch.task.validation import ValidationResult
from helpers.tiny_models import tiny_editable

TRAINED = (
    "lora-sft",
    "lora-sft-replay",
    "lora-sft-kl",
    "lorra",
    "circuit-breaker",
    "paired-matching",
    "dpo",
)
PUBLISHED = ("are-published", "are-published-wrapped")


def silent(what: str, done: int, total: int) -> None: ...


def tiny_concept(pairs: bool = True) -> Concept:
    """Prompts that end in w80 against the same prompts without it."""

    def rows(begin: int) -> tuple[Example, ...]:
        made = []
        for i in range(begin, begin + 12):
            pair = f"p{i}" if pairs else None
            plain, marked = f"w{i} w{i + 1}", f"w{i} w{i + 1} w80"
            made.append(Example((Message("user", marked),), "negative", "w5 w6 w7", pair))
            made.append(Example((Message("user", plain),), "positive", "w8 w9", pair))
            made.append(Example((Message("user", f"w60 w{i}"),), "retain", "w10 w11"))
        return tuple(made)

    direction_spec = DirectionSpec(("negative",), ("positive",), ("retain",))
    splits = {"train": rows(0), "validation": rows(20), "test": rows(40)}
    return Concept("tiny", "Tiny", "", splits, {"raise": direction_spec})  # type: ignore[arg-type]


def make_task(editable: EditableModel, pairs: bool = True, seed: int = 0) -> EditTask:
    config = EditConfig(
        concept="tiny", labels=8, retain=8, layers=(1, 2), read_layers=(1, 2), seed=seed,
        discriminator_width=16, discriminator_first=20,
    )  # fmt: skip
    return build_task(editable, tiny_concept(pairs), config)


def settings(id: str, **more: Any) -> Any:
    small: dict[str, Any] = {
        "steps": 24,
        "batch": 8,
        "num_validations": 2,
        "drift_guard": 100.0,
        "lr": 5e-3,
    }
    if id in PUBLISHED:
        small = {"rounds": 2, "lr": 3e-3, "discriminator_epochs": 5}
    return get_method(id).settings(**(small | more))


def apply(editable: EditableModel, id: str, task: EditTask, **more: Any) -> None:
    get_method(id).apply(editable, task, settings(id, **more), silent)


def weights(editable: EditableModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in adapters.parameters(editable).items()}


@pytest.mark.parametrize("id", [*TRAINED, *PUBLISHED])
def test_base_weights_and_responses_are_as_they_were_after_detaching(id: str) -> None:
    editable = tiny_editable()
    task = make_task(editable)
    base, before = editable.model, {n: p.clone() for n, p in editable.model.named_parameters()}
    held, shaped = set(vars(base)), base.config.to_dict()
    apply(editable, id, task)
    assert task.validator().drift > 0
    adapters.detach(editable)
    assert task.validator().drift == 0
    after = dict(editable.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # Nothing is left hanging on it either, such as another forward.
    assert editable.model is base
    assert set(vars(base)) == held
    assert base.config.to_dict() == shaped
    assert not base.training


@pytest.mark.parametrize("id", ["lora-sft-kl", "lorra", "dpo", "are-published-wrapped"])
def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(id: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for seed in (3, 3, 4):
        editable = tiny_editable()
        torch.manual_seed(len(found))  # nothing hangs on the global state
        apply(
            editable,
            id,
            make_task(editable, seed=seed),
            **({} if id in PUBLISHED else {"steps": 4}),
        )
        found.append(weights(editable))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.parametrize("id", ["lora-sft", "lora-sft-kl", "dpo"])
def test_what_learns_the_wanted_responses_makes_them_likelier(id: str) -> None:
    editable = tiny_editable()
    task = make_task(editable)
    before = task.validator().validation_score
    apply(editable, id, task)
    assert task.validator().validation_score > before + 0.1


def test_the_sft_loss_is_that_of_transformers() -> None:
    editable = tiny_editable()
    (batch,) = make_batches(make_task(editable).train.chosen, 8, 0)
    labels = torch.full_like(batch.ids, -100)
    for row, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        labels[row, start:length] = batch.ids[row, start:length]
    theirs = editable.model(
        input_ids=batch.ids, attention_mask=batch.token_mask().long(), labels=labels
    ).loss
    assert float(response_loss(editable, batch)) == pytest.approx(float(theirs), rel=1e-5)


def test_the_divergence_is_0_at_first_and_then_what_a_hand_computes() -> None:
    editable = tiny_editable()
    rows = make_task(editable).train.retain
    (batch,) = make_batches(rows, 8, 0)
    adapters.attach(editable, (1, 2), (), 4, 8.0, 0)
    assert float(base_kl(editable, batch).detach()) == 0
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.ids])
        ours = editable.model(input_ids=ids).logits[0].double().log_softmax(-1)
        with editable.base_model():
            base = editable.model(input_ids=ids).logits[0].double().log_softmax(-1)
        total += float(F.kl_div(ours.detach(), base.detach(), log_target=True, reduction="sum"))
        tokens += len(row.ids)
    assert total > 0
    assert float(base_kl(editable, batch).detach()) == pytest.approx(total / tokens, rel=1e-4)


def test_batches_go_on_without_end_and_every_row_comes_before_any_comes_again() -> None:
    editable = tiny_editable()
    rows = make_task(editable).train.retain
    endless = cycle(editable, rows, 3, "seed")
    seen = [i for _ in range(3) for i in next(endless).index]
    assert sorted(seen) == list(range(len(rows)))
    assert list(cycle(editable, [], 3, "seed")) == []


def test_the_keeper_takes_the_best_within_the_guard_else_the_lowest_drift() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))

    def best(*verdicts: tuple[float, float]) -> float:
        keeper = BestCheckpoint({"w": weight}, guard=0.1)
        for number, (validation_score, drift) in enumerate(verdicts):
            with torch.no_grad():
                weight.fill_(number)
            keeper.see(validation_score, drift)
        keeper.put_best()
        return weight.item()

    assert best((-3, 0.05), (-1, 0.09), (-2, 0.01), (0, 0.2)) == 1
    assert best((0, 0.5), (-9, 0.2), (0, 0.3)) == 1


def ready(pairs: bool = True) -> tuple[EditableModel, EditTask, Segment]:
    editable = tiny_editable()
    return editable, make_task(editable, pairs), Segment(editable, 0, 2)


def test_lorra_moves_states_along_the_vector() -> None:
    editable, task, segment = ready()
    (source,) = lorra.see(editable, segment, task.train.source, (1, 2), 8)
    (wanted,) = lorra.see(editable, segment, task.train.counterparts, (1, 2), 8)
    vectors = lorra.reading_vectors([wanted], [source])
    first = lorra.places(source) == 0
    by_hand = wanted.base[2][lorra.places(wanted) == 0].mean(0) - source.base[2][first].mean(0)
    assert torch.allclose(vectors[2][0], by_hand, atol=1e-6)
    apply(editable, "lorra", task, steps=60, shift=2.0, retain_weight=1.0)
    with torch.no_grad():
        moved = lorra.present(segment, source)[2] - source.base[2]
        start = lorra.shift_loss(segment, source, {b: 0 * v for b, v in vectors.items()}, 0.0)
        end = lorra.shift_loss(segment, source, vectors, 2.0)
        with editable.base_model():
            assert float(end) < 0.5 * float(lorra.shift_loss(segment, source, vectors, 2.0))
    assert float(start) > 0
    along = F.cosine_similarity(moved[first].mean(0), vectors[2][0], dim=0)
    assert float(along) > 0.8


def test_circuit_breaking_turns_unwanted_states_away_and_holds_the_rest() -> None:
    editable, task, segment = ready()
    (unwanted,) = lorra.see(editable, segment, task.train.rejected, (1, 2), 8)
    (hold,) = lorra.see(editable, segment, task.train.retain, (1, 2), 8, whole=True)
    assert float(circuit_breaker.reroute_loss(segment, unwanted)) == pytest.approx(1, abs=1e-5)
    assert float(circuit_breaker.retain_loss(segment, hold)) == pytest.approx(0, abs=1e-6)
    apply(
        editable, "circuit-breaker", task, steps=60, num_validations=1, lr=1e-2, retain_weight=10.0
    )
    with torch.no_grad():
        turned = float(circuit_breaker.reroute_loss(segment, unwanted))
        moved = float(circuit_breaker.retain_loss(segment, hold))
    assert turned < 0.7
    assert moved < 1 - turned


def test_the_schedule_of_circuit_breaking_is_the_papers() -> None:
    assert circuit_breaker.schedule(0, 150) == (1.0, 0.0)
    assert circuit_breaker.schedule(75, 150) == (0.75, 0.25)


@pytest.mark.parametrize("pairs", [True, False])
def test_paired_matching_brings_states_to_the_wanted_ones(pairs: bool) -> None:
    editable, task, segment = ready(pairs)
    places = paired_matching.pair_up(editable, task, segment, (1, 2), 8)
    wanted = lorra.see(editable, segment, task.train.target, (1, 2), 8)
    first, theirs = lorra.places(places[0]) == 0, lorra.places(wanted[0]) == 0
    if pairs:
        assert torch.allclose(places[0].base[2][first], wanted[0].base[2][theirs], atol=1e-5)
    else:
        mean = wanted[0].base[2][theirs].mean(0).expand(int(first.sum()), -1)
        assert torch.allclose(places[0].base[2][first], mean, atol=1e-5)
        # Responses of the source are longer than any of the target.
        assert int(lorra.places(places[0]).max()) == int(lorra.places(wanted[0]).max())
    apply(editable, "paired-matching", task, steps=40, num_validations=1, retain_weight=3.0)
    with torch.no_grad():
        near = float(paired_matching.pair_loss(segment, places[0]))
        with editable.base_model():
            far = float(paired_matching.pair_loss(segment, places[0]))
    assert near < 0.7 * far


def test_the_offset_moves_the_place_as_far_as_the_model_reaches() -> None:
    task = make_task(tiny_editable())
    assert paired_matching.placed(task, 0, 4) == (1, 2)
    assert paired_matching.placed(task, 1, 4) == (2, 3)
    assert paired_matching.placed(task, 2, 4) == (3,)
    assert paired_matching.placed(task, -2, 4) == (0,)


@pytest.mark.parametrize("id", ["dpo", "circuit-breaker"])
def test_a_concept_without_unwanted_responses_is_refused(id: str) -> None:
    editable = tiny_editable()
    task = make_task(editable, pairs=False)
    with pytest.raises(ConfigError, match="no pairs"):
        apply(editable, id, task)
    assert not editable.adapted


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_trl_trains_on_our_ids_and_begins_at_log_2(sft_weight: float, tmp_path: Path) -> None:
    editable = tiny_editable()
    rows = make_task(editable).train
    adapters.attach(editable, range(4), (), 4, 8.0, 0)
    with dpo.left_alone(editable):
        chosen = settings("dpo", sft_weight=sft_weight)
        trainer = dpo.make_trainer(editable, rows, chosen, 0, str(tmp_path))
        (batch,) = trainer.get_train_dataloader()
        loss = float(trainer.compute_loss(editable.model, batch))
    assert sorted(editable.model.peft_config) == ["default"]
    ours = {row.ids for row in (*rows.chosen, *rows.rejected)}
    real = batch["attention_mask"].bool()
    assert {
        tuple(ids[on].tolist()) for ids, on in zip(batch["input_ids"], real, strict=True)
    } == ours
    responses = {row.ids[row.start :] for row in (*rows.chosen, *rows.rejected)}
    counted = batch["completion_mask"].bool()
    found = {tuple(ids[on].tolist()) for ids, on in zip(batch["input_ids"], counted, strict=True)}
    assert found == responses
    (wanted,) = make_batches(rows.chosen, 8, 0)
    told = float(response_loss(editable, wanted))
    assert loss == pytest.approx(math.log(2) + sft_weight * told, rel=1e-4)


def test_dpo_says_nothing_and_leaves_no_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    editable = tiny_editable()
    apply(editable, "dpo", make_task(editable), steps=4)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_dpo_widens_the_margin_over_the_base() -> None:
    editable = tiny_editable()
    task = make_task(editable)
    apply(editable, "dpo", task, beta=0.5)

    def margin() -> float:
        (wanted,) = make_batches(task.train.chosen, 8, 0)
        (rejected,) = make_batches(task.train.rejected, 8, 0)
        return float(response_loss(editable, rejected) - response_loss(editable, wanted))

    with torch.no_grad(), editable.base_model():
        before = margin()
    assert margin() > before + 0.1


def test_the_published_loop_lowers_its_loss_prompt_by_prompt() -> None:
    editable = tiny_editable()
    task = make_task(editable)
    shown, labels = are_published.prompts(task.train)
    assert labels.tolist() == [0, 1] * 8
    assert shown[0].tolist() == [list(task.train.source[0].ids[: task.train.source[0].start])]
    chosen = settings("are-published", discriminator_epochs=200, discriminator_lr=1e-2)
    adapters.attach(editable, (1, 2), chosen.modules, 8, 8.0, 0)
    states = are_published.last_states(editable, shown, (1, 2))
    assert states.shape == (16, 64)
    reader = are_published.learn(states, labels, chosen, 0)
    assert are_published.accuracy(reader, states, labels) > 0.9
    losses = [are_published.push(editable, shown, reader, (1, 2), chosen) for _ in range(3)]
    assert losses[2] < 0.7 * losses[0]


@pytest.mark.parametrize(("id", "pushed"), [("are-published", 16), ("are-published-wrapped", 8)])
def test_the_published_loop_takes_a_fresh_discriminator_every_round_and_stops_by_its_rule(
    id: str, pushed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny_editable()
    task = make_task(editable)
    readers: list[are_published.Reader] = []
    rows: list[int] = []
    learn, push = are_published.learn, are_published.push

    def learning(*given: Any) -> are_published.Reader:
        readers.append(learn(*given))
        return readers[-1]

    def pushing(editable: EditableModel, prompts: Any, reader: Any, *more: Any) -> float:
        rows.append(len(prompts))
        assert reader is readers[-1]
        return push(editable, prompts, reader, *more)

    read = iter([0.9, 0.75, 0.6, 0.9])
    monkeypatch.setattr(are_published, "learn", learning)
    monkeypatch.setattr(are_published, "push", pushing)
    monkeypatch.setattr(are_published, "accuracy", lambda *_: next(read))
    apply(editable, id, task, rounds=9)
    assert rows == [pushed] * 3  # the third accuracy lies within the range
    retain_openings = {tuple(next(reader.parameters())[0].tolist()) for reader in readers}
    assert len(retain_openings) == 4


def test_the_stop_rule() -> None:
    assert [are_published.converged(a) for a in (0.45, 0.46, 0.69, 0.7)] == [
        False,
        True,
        True,
        False,
    ]


def test_forced_beginnings_are_none_of_the_published_prompts() -> None:
    editable = tiny_editable()
    config = EditConfig(concept="tiny", labels=8, retain=8, layers=(1,), read_layers=(1,), forced=2)
    task = build_task(editable, tiny_concept(), config)
    assert len(task.train.source) == 24
    assert len(are_published.prompts(task.train)[0]) == 16


def test_a_model_without_the_named_linears_is_an_error() -> None:
    editable = tiny_editable("gpt2")
    with pytest.raises(ModelError, match="q_proj"):
        apply(editable, "are-published", make_task(editable))


def test_methods_without_a_judge_never_ask_it() -> None:
    editable = tiny_editable()

    def never() -> ValidationResult:
        raise AssertionError

    for id in PUBLISHED:
        apply(editable, id, replace(make_task(editable), judge=never))
        adapters.detach(editable)
