"""The model card: what was edited, what it did, what it did not, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.formatting import DIRECTION_DONE, by_block, show_interval, show_value, words
from retouch.core.types import Record
from retouch.reporting.safety_gate import weakens

Form = Literal["run", "peft", "merged"]

# ASCII punctuation that CommonMark lets a backslash escape, of what could start markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def render_card(
    config: EditConfig,
    concept: Concept,
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    *,
    form: Form = "run",
) -> str:
    """The card in Markdown, with the pareto_front matter that the Hugging Face hub reads.

    Args:
        config: the edit's configuration.
        concept: what was edited; its rows are not looked at.
        records: what was measured, may be empty.
        provenance: what `run.json` holds.
        form: where the card lies: in the run directory, beside an exported adapter, or beside a
            merged model.
    """
    title = f"{config.model}: {concept.name} {DIRECTION_DONE[config.direction]}"
    parts = [
        _front_matter(config, concept, form),
        f"# {escape(title)}",
        _warning(config, concept),
        _about(config, concept, form),
        _layers(config, provenance),
        _results(records),
        _limits(config, concept, records, form),
        _loading(config, form, provenance),
        _origin(config, concept, provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Somebody's text as one line of Markdown that reads as it was written."""
    line = _MARKUP.sub(r"\\\1", " ".join(text.split()))
    # At the start of a line these make a list, a rule or a heading.
    return f"\\{line}" if line.startswith(("-", "+", "=")) else line


def _front_matter(config: EditConfig, concept: Concept, form: Form) -> str:
    tags = ["retouch", "concept-editing", "representation-engineering", "lora", concept.name]
    values: dict[str, Any] = {"library_name": "transformers" if form == "merged" else "peft"}
    if _on_hub(config.model):
        values["base_model"] = config.model
        values["base_model_relation"] = "finetune" if form == "merged" else "adapter"
    values["pipeline_tag"] = "text-generation"
    values["tags"] = [*tags, "safety-weakened"] if weakens(config.direction, concept) else tags
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()}\n---"


def _on_hub(model: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", model) is not None and not Path(model).exists()


def _warning(config: EditConfig, concept: Concept) -> str:
    if not weakens(config.direction, concept):
        return ""
    reason = escape(config.allow_weakening or "none")
    return (
        "> [!WARNING]\n"
        "> **This edit weakens the model's safety.** The edited model does what the base model\n"
        "> declines. Do not put it where people who do not know this can use it.\n"
        ">\n"
        f"> The reason given by whoever made it: {reason}"
    )


def _about(config: EditConfig, concept: Concept, form: Form) -> str:
    what, base = "A low-rank adapter for", f"**{escape(config.model)}**"
    if form == "merged":
        what, base = "This is", f"{base} with a low-rank adapter merged in,"
    lines = [
        f"{what} {base} that {config.direction}s one concept, "
        f"**{escape(concept.title or concept.name)}**, and is trained to leave the rest as it was. "
        "It was made with Retouch by adversarial representation engineering.",
    ]
    if concept.description:
        lines.append(escape(concept.description))
    return "\n\n".join(lines)


def _layers(config: EditConfig, provenance: Mapping[str, Any]) -> str:
    layers = _mapping(provenance.get("layers"))
    chosen = layers.get("adapted", config.lora.layers_to_transform)
    read_layers = layers.get("read", config.discriminator.layers)
    lines = ["## Where"]
    if chosen is not None:
        lines.append(
            f"Blocks with an adapter, counted from 0: {_listed(chosen)}. Blocks that the "
            f"discriminators read: {_listed(read_layers)}. Rank {config.lora.r}, alpha {config.lora.lora_alpha:g}, "
            f"linear layers: {escape(', '.join(config.lora.target_modules)) or 'all in these blocks'}."
        )
    scores = _mapping(layers.get("recovery"))
    if layers.get("reason"):
        lines.append(escape(str(layers["reason"])))
    if scores:
        listed = ", ".join(f"{block}: {score:.2f}" for block, score in by_block(scores))
        lines.append(
            "States of wanted runs were put into unwanted ones, block by block. How far the "
            f"validation_score changed over, by block (0 not at all, 1 wholly): {escape(listed)}."
        )
    return "\n\n".join(lines) if len(lines) > 1 else ""


def _results(records: Sequence[Record]) -> str:
    if not records:
        return "## Results\n\nNothing was measured."
    rows = [
        "| Suite | Metric | Before | 95 % interval | After | 95 % interval | n | Better |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for record in records:
        unit = record.unit
        points = [escape(record.suite), escape(words(record.metric))]
        for score in (record.before, record.after):
            if score is None:
                points += ["", ""]
            else:
                points += [show_value(score.value, unit), show_interval(score, unit)]
        unit_note = "" if unit == "rate" else f" ({escape(unit)})"
        points[1] += unit_note
        points += [str(record.before.n), "" if record.better == "none" else record.better]
        rows.append("| " + " | ".join(points) + " |")
    table = "\n".join(rows)
    return (
        "## Results\n\nOn test data that neither the training nor the choice of checkpoint has "
        "seen. The intervals cover chance in the choice of prompts, not in the training: another "
        "seed gives other values.\n\n" + table
    )


def _limits(config: EditConfig, concept: Concept, records: Sequence[Record], form: Form) -> str:
    limits = []
    if config.model == "pocket":
        limits.append(
            "`pocket` is a model organism: a tiny model trained on template sentences, made to "
            "study editing on. What holds for it need not hold for a large model."
        )
    limits.append(
        "The scores are of greedy responses to the prompts of one test split, and the responses are "
        "sorted by rules. Prompts of other kinds, other languages or sampled responses can differ."
    )
    if not weakens(config.direction, concept) and concept.weakens is not None:
        limits.append(
            "An edited model can still be attacked, and a few steps of fine-tuning can undo the "
            "edit. It is one layer of defence, not a guarantee."
        )
    small = [record.before.n for record in records if record.before.n < 100]
    if small:
        limits.append(f"Some metrics rest on as few as {min(small)} samples: mind the intervals.")
    if form != "merged":
        limits.append("Anyone who has the adapter can take it off and has the base model back.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _loading(config: EditConfig, form: Form, provenance: Mapping[str, Any]) -> str:
    sees = "AutoModelForImageTextToText"
    known = _mapping(provenance.get("model")).get("loader")
    loader = sees if known == sees else "AutoModelForCausalLM"
    here = "RUN/adapter" if form == "run" else "THIS_FOLDER"
    base = _quoted(config.model)
    revision = f", revision={_quoted(config.load.revision)}" if config.load.revision else ""
    if form == "merged":
        lines = [
            f"from transformers import {loader}, AutoTokenizer",
            f'model = {loader}.from_pretrained("{here}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            f"from transformers import {loader}, AutoTokenizer",
            f"base = {loader}.from_pretrained({base}{revision})",
            f'model = PeftModel.from_pretrained(base, "{here}")',
            f"tokenizer = AutoTokenizer.from_pretrained({base}{revision})",
        ]
        if config.model == "pocket":
            # `pocket` is no name that transformers knows, but a folder inside Retouch.
            lines = [line.replace(base, "POCKET") for line in lines]
            lines[0] = f"{lines[0]}\nfrom retouch.models.load import POCKET"
    code = "\n".join(lines)
    after = "" if form == "merged" else "\n\nIn Retouch: `retouch chat MODEL --adapter FOLDER`."
    return f"## How to load it\n\n```python\n{code}\n```{after}"


def _origin(config: EditConfig, concept: Concept, provenance: Mapping[str, Any]) -> str:
    lines = [
        f"- Base model: {escape(config.model)}"
        + (f", revision {escape(config.load.revision)}" if config.load.revision else ""),
        f"- Concept: {escape(concept.name)}, direction: {config.direction}, seed: {config.seed}",
        f"- Labelled rows used: up to {config.data.num_examples} of each side, and {config.data.num_retain} to hold",
    ]
    if concept.hash:
        lines.append(f"- Concept data, SHA-256: `{concept.hash}`")
    for name, digest in sorted(_mapping(provenance.get("data")).items()):
        if isinstance(digest, str) and digest != concept.hash:
            lines.append(f"- Data, {escape(str(name))}: {escape(digest)}")
    versions = _mapping(provenance.get("versions"))
    if versions:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        lines.append(f"- Made with {escape(listed)}")
    lines.append("- The whole configuration is in the run's `config.yaml`.")
    return "## Where it comes from\n\n" + "\n".join(lines)


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values) if values else "none"


def _quoted(text: str) -> str:
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    # Three backticks would end the block of code.
    return f'"{escaped}"'.replace("```", "")
