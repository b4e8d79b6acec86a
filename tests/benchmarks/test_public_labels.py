from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.public_labels import COUNTS, harmful_requests, public_safety
from helpers.public_data import write_rows
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept, load_concept_file


def request(number: int) -> str:
    """Three words of its own, so that no two requests are near."""
    rng = random.Random(number)
    return " ".join("".join(rng.sample("abcdefghijklmnop", 8)) for _ in range(3))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tested, kinds = request(0), ("standard", "contextual", "copyright")
    row = {"id": 0, "semantic_category": "kind", "category": "kind", "type": "kind"}
    write_rows(tmp_path, "jailbreakbench_harmful", [{**row, "goal": tested}])
    write_rows(
        tmp_path,
        "harmbench_behaviors_text",
        [
            {**row, "behavior": request(1), "context": "", "functional_category": kind}
            for kind in kinds
        ],
    )
    labels = ("safe", "unsafe")
    write_rows(
        tmp_path, "xstest", [{**row, "prompt": request(2), "label": label} for label in labels]
    )
    rows = [{"instruction": request(10 + i), "split": "train"} for i in range(sum(COUNTS.values()))]
    rows += [{"instruction": f"{tested} please", "split": "train"}]  # near a tested one
    rows += [{"instruction": request(9), "split": "val"}]
    write_rows(tmp_path, "refusal_direction_harmful", rows)
    rows = [
        {"instruction": f"Sew {split} {i}", "split": split}
        for split, count in (("train", 300), ("val", 100), ("test", 10))
        for i in range(count)
    ]
    write_rows(tmp_path, "refusal_direction_harmless", rows)
    return tmp_path


def test_requests_near_a_tested_one_and_of_other_splits_are_left_out(data: Path) -> None:
    found = harmful_requests(data)
    assert len(found) == sum(COUNTS.values())
    assert not any("please" in text for text in found)
    assert request(9) not in found


def test_the_concept_has_public_requests_in_the_packs_attacks(data: Path, tmp_path: Path) -> None:
    concept, pack, public = public_safety(data), load_concept("safety"), set(harmful_requests(data))
    used = []
    for split, count in COUNTS.items():
        harmful = [one.prompt[-1].content for one in concept.select(split, ["harmful"])]
        assert len(harmful) == count
        assert set(harmful) <= public
        used += harmful
        attacks = concept.select(split, ["attack"])
        assert attacks
        assert all(any(text in one.prompt[-1].content for text in harmful) for one in attacks)
        borderline = ["borderline", "wrapped", "prefilled-harmless"]
        assert concept.select(split, borderline) == pack.select(split, borderline)
    assert len(set(used)) == len(used)  # the splits share no request
    assert not any("Sew test" in one.prompt[-1].content for one in concept.examples["train"])
    save_pack(concept, tmp_path / "pack")
    assert load_concept_file(tmp_path / "pack").examples == concept.examples
