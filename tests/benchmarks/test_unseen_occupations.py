from __future__ import annotations

from pathlib import Path

from benchmarks import unseen_occupations
from helpers.public_data import write_rows
from retouch.suites.registry import load_suite_concept


def test_pairs_with_an_occupation_of_the_pack_are_left_out(tmp_path: Path) -> None:
    seen = unseen_occupations.seen_occupations()
    assert "mechanic" in seen
    assert "hairdresser" not in seen  # of the test split
    rows = [
        {
            "stereotype": side,
            "type": 1,
            "split": "dev",
            "id": number,
            "sentence": f"The {name} met the tailor because {pronoun} was late.",
        }
        for number, name in enumerate(("mechanic", "hairdresser", "Mechanics'", "sheriff"))
        for side, pronoun in (("pro", "he"), ("anti", "she"))
    ]
    write_rows(tmp_path / "data", "winobias", rows)
    pairs = [
        {"sent_more": "He led.", "sent_less": "She led.", "bias_type": kind}
        for kind in ("gender", "age")
    ]
    write_rows(tmp_path / "data", "crows_pairs", pairs)
    counts = unseen_occupations.write(tmp_path / "out", tmp_path / "data")
    assert counts == {"winobias-unseen": 4, "crows-pairs-gender": 1}
    suite = load_suite_concept(tmp_path / "out" / "winobias-unseen.yaml")
    texts = " ".join(one.response or "" for one in suite.examples["test"])
    assert "hairdresser" in texts
    assert "sheriff" in texts
    assert "echanic" not in texts
    assert (
        len(load_suite_concept(tmp_path / "out" / "crows-pairs-gender.yaml").examples["test"]) == 2
    )
