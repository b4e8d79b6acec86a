"""The field's words, and no others, as names: identifiers, files, options, keys of files.

One idea has one name throughout: source, target and retain examples, target counterparts,
responses, layers that are adapted or read. This test refuses the names that earlier drafts had.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from retouch.core.options import OPTIONS

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "benchmarks", "examples", "model_organisms")

# Parts of identifiers that are refused wherever they stand.
PARTS = frozenset(
    """game play opponent opponents teach behave twin twins told taught begun hold held everyday
    debris jury verdict board cutter lay idle caught tap taps tapped decisive sketch footprint
    outlook mend mends foreseen foresee crew ledger harder tamperer tampering tampered
    reply replies rendered fooling shown
    asked unwanted settle templated stress""".split()  # noqa: SIM905
)
# Whole identifiers that are refused; as parts of other names they are ordinary words.
NAMES = frozenset(
    """Board Place Piece Cutter Seen Sizes Caught Call Jury Verdict Setting Tamperer Change
    Drawn EditRows Rendered LoadedModel StateStore Placement Sketch Shards Diagnosis Outlook Memory
    Demand Tampering Stress Aim Attempt Bench Cell Crew Ledger Line Contrast Space Keeper Frame
    MovingAverage Sides loaded sides wanted moved aim bench cell cells dial suffix_attack at_once
    drift_guard also_hold pair_weight supervised_weight first_weight match_prompt reply_positions
    perturb perturb_steps tamper tamper_lr tamper_weight discriminator_width discriminator_lr
    cache_memory device_memory measure_rows forced_rows lr add_up from_first gathered
    give_back ran_out in_parts lay_out set_up set_task make_judge worst_push run_whole replaced
    fooling_loss matching_loss supervised_loss hush_libraries base_of lean behaviour room ways
    did verdicts piece pieces""".split()  # noqa: SIM905
)
FILES = frozenset(
    """own table check catalog replies wording memory store placement ranks sketch shards footprint
    reach stress suffix typed demand dial crew cluster ledger proposal space aim attempt bench cell
    plan harder search compose card gate numbers pictures rows forced board pieces tampering
    room texts outlook fit side spelled deadly together tiny""".split()  # noqa: SIM905
)
# The check of an edit and its memory plan are what these words mean.
ALLOWED_FILES = {
    f"{folder}/preflight/{prefix}{stem}.py"
    for folder, prefix in (("src/retouch", ""), ("tests", "test_"))
    for stem in ("check", "memory")
} | {"src/retouch/comparison/table.py"}
FLAGS = frozenset(
    """--labels --questions --keep --once --guard --rank --alpha --modules --layers --taps --batch
    --lr --average --drift-guard --at-once --reply-tokens --forced --shard --tamper --perturb
    --measure --also-hold --retain --stress""".split()  # noqa: SIM905
)


def _python_files() -> Iterator[Path]:
    for folder in CODE:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.keyword) and node.arg and node.arg != "lr":  # PyTorch's own
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def _parts(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {part.lower() for part in spaced.split("_") if part}


def test_no_identifier_has_a_refused_name() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in _python_files()
        if file != Path(__file__)
        for name, line in _identifiers(ast.parse(file.read_text("utf-8")))
        if name.strip("_") in NAMES or _parts(name) & PARTS
    ]
    assert not found, "\n".join(found)


def test_no_file_has_a_refused_name() -> None:
    found = [
        str(file.relative_to(ROOT))
        for file in _python_files()
        if file.stem.removeprefix("test_") in FILES
        and str(file.relative_to(ROOT)) not in ALLOWED_FILES
    ]
    assert not found, "\n".join(found)


def test_no_option_has_a_refused_name() -> None:
    assert not FLAGS & {flag for option in OPTIONS for flag in option.flags}


def test_packs_have_the_keys_of_the_schema() -> None:
    packs = sorted((ROOT / "src/retouch/concepts/packs").glob("*/concept.yaml"))
    assert len(packs) >= 5
    for file in packs:
        for spec in (yaml.safe_load(file.read_text("utf-8")).get("directions") or {}).values():
            assert set(spec) <= {
                *("source", "target", "retain", "effect", "effect_better", "context")
            }
