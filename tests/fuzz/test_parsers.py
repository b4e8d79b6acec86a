"""Each parser, given what Hypothesis makes up: a value, or an error that names the problem."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch.cli.options import split_assignments, split_numbers
from retouch.comparison.tuned_settings import check_settings_file
from retouch.concepts.registry import load_concept, load_concept_file
from retouch.core.chat_template import TemplateFailure, apply_template, set_template_settings
from retouch.core.config import EditConfig
from retouch.core.config_file import dump_yaml, load_yaml, read_config_file, resolve
from retouch.core.errors import RetouchError
from retouch.core.options import OPTIONS, nest
from retouch.core.run_dir import ADAPTER_WEIGHTS, RunDir
from retouch.core.thoughts import after_thought
from retouch.core.units import parse_size
from retouch.evaluation.instruction_rules import parse_rule
from retouch.evaluation.judge_formats import load_format
from retouch.evaluation.outcome import Outcome
from retouch.evaluation.response_classifier import classify, tone
from retouch.models.adapter_files import KNOWN, read_adapter_config
from retouch.models.checkpoint_files import check_folder
from retouch.models.gguf_header import read_header
from retouch.reporting.model_card import render_card
from retouch.reporting.report import render_report
from retouch.suites.suite import read_suite

EXAMPLES = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # of files, which take milliseconds

ODD_TEXTS = st.sampled_from(
    (
        *("", " ", "\u200b", "\0", "\x1b[2J", "\ud800", "../x", "/dev/zero"),
        *("nan", "-1", "1e999", "a" * 300),
    )
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70)),
    *(st.floats(), ODD_TEXTS, st.text(max_size=20)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def mappings(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of some of these names, and now and then of another, to any values."""
    keys = st.one_of(*[st.sampled_from(names)] * 9, st.text(max_size=8))
    return st.dictionaries(keys, VALUES, max_size=6)


def bytes_or_json(*names: str) -> st.SearchStrategy[bytes]:
    """The content of a file: any bytes, or the JSON of a mapping."""
    return st.one_of(st.binary(max_size=80), mappings(*names).map(lambda v: json.dumps(v).encode()))


def no_fault(call: Callable[[], object]) -> None:
    """Call it; an error must be one that a user can fix, in a few lines."""
    found = ""
    try:
        call()
    except RetouchError as error:
        found = str(error)
    assert not found or 10 < len(found) < 4000


@given(mappings(*(option.path for option in OPTIONS)))
def test_configurations(values: dict[str, Any]) -> None:
    with suppress(RetouchError):
        config = resolve(nest(values))
        # What is accepted can be recorded, and is the same when it is read again.
        assert EditConfig.model_validate(load_yaml(dump_yaml(config))) == config
    no_fault(lambda: resolve(nest(values)))


@given(st.sampled_from(OPTIONS), st.one_of(ODD_TEXTS, st.text(), st.floats().map(str)))
def test_options(option: Any, text: str) -> None:
    no_fault(lambda: resolve(nest({option.path: option.parse(text)})))


@EXAMPLES
@given(content=st.binary(max_size=200), form=st.sampled_from(("yaml", "toml")))
def test_configuration_files(tmp_path: Path, content: bytes, form: str) -> None:
    file = tmp_path / f"settings.{form}"
    file.write_bytes(content)
    no_fault(lambda: resolve(read_config_file(file)))


@given(st.text(alphabet=st.sampled_from("ab:-&*!?|>[]{},#'\"%@ \n\t1.0"), max_size=60))
def test_yaml(text: str) -> None:
    def read() -> None:
        with suppress(ValueError):
            load_yaml(text)

    import yaml

    with suppress(yaml.YAMLError):
        no_fault(read)


LABELS = st.one_of(st.sampled_from(("positive", "negative", "retain", "0", "")), SCALARS)
ROWS = st.lists(
    st.one_of(
        VALUES,
        st.fixed_dictionaries(
            {"prompt": st.one_of(st.text(max_size=12), VALUES), "label": LABELS},
            optional=dict.fromkeys(("pair", "split", "response", "group", "prefill"), VALUES),
        ),
        mappings("messages", "conversations", "chosen", "rejected", "prompt", "completion"),
        mappings("instruction", "input", "output", "label", "from", "role", "content"),
    ),
    max_size=5,
)


@EXAMPLES
@given(rows=ROWS, form=st.sampled_from(("jsonl", "json")))
def test_rows(tmp_path: Path, rows: list[Any], form: str) -> None:
    file = tmp_path / f"data.{form}"
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]"
    file.write_text(text)
    no_fault(lambda: load_concept_file(file))


@EXAMPLES
@given(
    content=st.one_of(
        st.binary(max_size=120),
        st.text(alphabet=st.sampled_from('ab,;\t"\n\r =12'), max_size=80).map(
            lambda text: f"prompt,label\n{text}".encode()
        ),
    ),
    form=st.sampled_from(("csv", "tsv", "jsonl", "json", "parquet", "arrow")),
)
def test_tables(tmp_path: Path, content: bytes, form: str) -> None:
    file = tmp_path / f"data.{form}"
    file.write_bytes(content)
    no_fault(lambda: load_concept_file(file))


PARTS = ("concept", "contrast", "data", "layers", "model", "outcome", "safety", "versions", "done")


@EXAMPLES
@given(
    values=mappings(*PARTS), more=mappings("adapted", "read", "recovery", "status", "text", "name")
)
def test_provenance(tmp_path: Path, values: dict[str, Any], more: dict[str, Any]) -> None:
    """What is accepted makes a card and a report."""
    (tmp_path / "config.yaml").write_text("model: pocket\nconcept: pocket-safety\n")
    facts = values | {name: more for name in PARTS[:8:2] if name not in values}
    (tmp_path / "run.json").write_text(json.dumps(facts))

    def render() -> None:
        run = RunDir.open(tmp_path)
        concept, provenance = load_concept("pocket-safety"), run.provenance()
        assert render_card(run.config(), concept, [], provenance)
        assert render_report(run.config(), concept, [], [], [], provenance)
        run.recorded("outcome", Outcome)

    no_fault(render)


def _write_yaml(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values))  # which is YAML


@EXAMPLES
@given(
    values=mappings(
        *("name", "title", "description", "models", "weakens", "directions", "settings", "metrics"),
        *("add_ordinary", "uses"),
    )
)
def test_packs(tmp_path: Path, values: dict[str, Any]) -> None:
    fine = {"name": "mine", "title": "Mine", "description": "A pack."}
    _write_yaml(tmp_path / "concept.yaml", fine | values)
    row = json.dumps({"prompt": "a", "label": "positive"}) + "\n"
    (tmp_path / "train.jsonl").write_text(row)
    no_fault(lambda: load_concept(str(tmp_path)))


@EXAMPLES
@given(values=mappings("sources", "prompt", "scorers", "better", "system", "columns", "groups"))
def test_suites(tmp_path: Path, values: dict[str, Any]) -> None:
    fine = {"name": "mine", "title": "Mine", "url": "https://example.org", "licence": "MIT"}
    fine |= {"prompt": "{goal}", "sources": [{"file": "rows.jsonl"}], "scorers": ["refusal"]}
    file = tmp_path / "suite.yaml"
    _write_yaml(file, fine | values)
    no_fault(lambda: read_suite(file))


@EXAMPLES
@given(values=mappings("template", "output", "max_response_tokens", "truncate", "tags", "models"))
def test_judge_formats(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "judge.yaml"
    _write_yaml(file, {"name": "mine", "title": "Mine", "source": "here"} | values)
    no_fault(lambda: load_format(file))


@EXAMPLES
@given(content=bytes_or_json("retouch", "sft", "none"))
def test_tuned_settings(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_bytes(content)
    no_fault(lambda: check_settings_file(file))


RECORDS = ("run.json", "metrics.json", "samples.jsonl", "events.jsonl", "config.yaml")


@EXAMPLES
@given(
    content=bytes_or_json("model", "safety", "layers"),
    name=st.sampled_from(RECORDS),
)
def test_records_of_runs(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "config.yaml").write_text("model: pocket\nconcept: pocket-safety\n")
    (tmp_path / name).write_bytes(content)

    def read() -> None:
        run = RunDir.open(tmp_path)
        for part in (run.config, run.load_options, run.provenance, run.metrics, run.samples):
            part()
        run.events()

    no_fault(read)


@EXAMPLES
@given(values=mappings(*sorted(KNOWN), "megatron_core", "corda_config"))
def test_settings_of_adapters(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    fine = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4}
    _write_yaml(tmp_path / "adapter_config.json", fine | values)
    no_fault(lambda: read_adapter_config(tmp_path))


@EXAMPLES
@given(
    header=bytes_or_json("__metadata__", "a"),
    rest=st.binary(max_size=16),
)
def test_headers_of_safetensors(tmp_path: Path, header: bytes, rest: bytes) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header + rest)
    no_fault(lambda: check_folder(tmp_path))
    weights.write_bytes(header)
    no_fault(lambda: check_folder(tmp_path))


@EXAMPLES
@given(content=st.binary(max_size=120), version=st.sampled_from((2, 3, 9)))
def test_headers_of_gguf(tmp_path: Path, content: bytes, version: int) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<I", version) + content)
    no_fault(lambda: read_header(file))


@given(st.text(max_size=40))
def test_values_of_options(text: str) -> None:
    for read in (parse_size, parse_rule):
        no_fault(lambda read=read: read(text))  # type: ignore[misc]
    no_fault(lambda: split_numbers("seeds", text, float))
    no_fault(lambda: split_assignments("uses", [text]))


@given(st.text(max_size=80))
def test_responses(text: str) -> None:
    assert classify(text)
    assert tone(text)
    after_thought(text)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=3), st.text(max_size=20))
def test_template_variables(variables: dict[str, Any], time: str) -> None:
    no_fault(lambda: resolve({"load": {"chat_template_kwargs": variables}}))
    no_fault(lambda: resolve({"load": {"chat_template_time": time}}))


TEMPLATE_PARTS = (
    *("{{", "}}", "{%", "%}", "for", "if", "endfor", "endif", "in", "messages", "m", ".content"),
    *(" ", "0", "'a'", "*", "**", "/", "+", "(", ")", "range", "|join", "set", "=", "macro f"),
)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(TEMPLATE_PARTS), max_size=16).map("".join))
def test_chat_templates(template: str) -> None:
    from helpers.char_tokenizer import char_tokenizer

    tokenizer = char_tokenizer()
    tokenizer.chat_template = template
    set_template_settings(tokenizer, None)
    with suppress(TemplateFailure):
        assert isinstance(apply_template(tokenizer, [{"role": "user", "content": "a"}]), str)
