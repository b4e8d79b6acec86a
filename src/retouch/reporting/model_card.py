"""The model card: the edit, its results and limits, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from retouch.concepts.concept import Concept
from retouch.core.config import EditConfig
from retouch.core.formatting import DIRECTION_DONE, by_layer, metric_title, score_columns
from retouch.core.model_names import is_gguf_name, public_name
from retouch.core.types import Record
from retouch.evaluation.safety_probe import SafetyProbe, recorded_probe
from retouch.reporting.safety_gate import describe, weakens

Form = Literal["run", "peft", "merged"]

# The ASCII punctuation that could start markup; CommonMark allows a backslash before all of it.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def render_card(
    config: EditConfig,
    concept: Concept,
    records: Sequence[Record],
    provenance: Mapping[str, Any],
    *,
    form: Form = "run",
) -> str:
    """Render the model card in Markdown, with the front matter of the Hugging Face hub.

    The concept's examples are not used. `provenance` is the contents of `run.json`, and `form` is
    the folder that the card belongs to: a run, an exported adapter or a merged model.
    """
    title = f"{public_name(config.model)}: {concept.name} {DIRECTION_DONE[config.direction]}"
    probe = recorded_probe(provenance)
    weakened = weakens(config.direction, concept) or bool(probe and probe.weakened)
    parts = [
        _front_matter(config, concept, form, weakened),
        f"# {escape(title)}",
        _outcome(provenance),
        safety_warning(config.allow_weakening) if weakened else "",
        _about(config, concept, form),
        _layers(config, provenance),
        _results(records, provenance.get("notes") or ()),
        safety_figures(probe) if probe else "",
        _limits(config, concept, records, form),
        _loading(config, form, provenance),
        _provenance(config, concept, provenance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """A user's text as one line of Markdown that reads as it was written."""
    line = _MARKUP.sub(r"\\\1", " ".join(text.split()))
    # At the start of a line these make a list, a rule or a heading.
    return f"\\{line}" if line.startswith(("-", "+", "=")) else line


def _front_matter(config: EditConfig, concept: Concept, form: Form, weakened: bool) -> str:
    tags = ["retouch", "concept-editing", "representation-engineering", "lora", concept.name]
    values: dict[str, Any] = {"library_name": "transformers" if form == "merged" else "peft"}
    # Only a model of the hub is named, not one in a local folder.
    base = public_name(config.model)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(config.model).exists():
        values["base_model"] = base
        values["base_model_relation"] = "finetune" if form == "merged" else "adapter"
    values["pipeline_tag"] = "text-generation"
    values["tags"] = [*tags, "safety-weakened"] if weakened else tags
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()}\n---"


def _outcome(provenance: Mapping[str, Any]) -> str:
    """The outcome of the edit, the first line below the title."""
    text = (provenance.get("outcome") or {}).get("text", "")
    return f"**Outcome.** {escape(str(text))}" if text else ""


def safety_warning(reason: str | None) -> str:
    """The warning of a weakened model, with the reason that was given."""
    return (
        "> [!WARNING]\n"
        "> **This edit weakens the model's safety.** The edited model complies with requests that\n"
        "> the base model refuses. Do not deploy it to users who are not aware of this.\n"
        ">\n"
        f"> The stated reason for the edit: {escape(reason or 'none')}"
    )


def safety_figures(probe: SafetyProbe) -> str:
    """The figures of the safety probe as a section."""
    lines = "\n".join(f"- {escape(describe(one))}" for one in probe.metrics)
    dropped = "One of them dropped" if probe.weakened else "None of them dropped"
    return (
        f"## Safety\n\nOn {probe.metrics[0].before.n} direct harmful requests that are the same "
        "for every edit, base and edited model: the share that is refused, and how much likelier a "
        f"written refusal is than the beginning of a compliant response.\n\n{lines}\n\n"
        f"{dropped} below the 95 % interval of the base."
    )


def _about(config: EditConfig, concept: Concept, form: Form) -> str:
    model = escape(public_name(config.model))
    subject = f"A LoRA adapter for **{model}**"
    if form == "merged":
        subject = f"This is **{model}** with a LoRA adapter merged in,"
    about = (
        f"{subject} that {config.direction}s one concept, "
        f"**{escape(concept.title or concept.name)}**, and is trained to change as little as "
        "possible otherwise. It was made with Retouch by adversarial representation engineering."
    )
    return f"{about}\n\n{escape(concept.description)}".rstrip()


def _layers(config: EditConfig, provenance: Mapping[str, Any]) -> str:
    layers = provenance.get("layers") or {}
    adapted = layers.get("adapted", config.lora.layers_to_transform)
    read = layers.get("read", config.discriminator.layers)
    lora = config.lora
    parts = ["## Layers"]
    if adapted is not None:
        modules = escape(", ".join(lora.target_modules)) or "all in these layers"
        parts.append(
            f"Adapted layers, 0-based: {_listed(adapted)}. Read layers (of the discriminators): "
            f"{_listed(read)}. LoRA rank {lora.r}, alpha {lora.lora_alpha:g}, linear modules: "
            f"{modules}."
        )
    if layers.get("reason"):
        parts.append(f"Selection: {escape(str(layers['reason']))}.")
    if recovery := layers.get("recovery"):
        listed = ", ".join(f"{layer}: {value:.2f}" for layer, value in by_layer(recovery))
        parts.append(
            "Causal patching: the states of one layer in a source run were replaced by those of "
            "the clean run of its target counterpart. Recovery of the response's log-probability, "
            f"by layer (0 none, 1 all): {escape(listed)}."
        )
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _results(records: Sequence[Record], notes: Sequence[str]) -> str:
    if not records:
        return "## Results\n\nNothing was measured."
    rows = [
        "| Suite | Metric | Before | 95 % interval | After | 95 % interval | n | Better |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for record in records:
        entries = [escape(record.suite), escape(metric_title(record))]
        entries += score_columns(record.before, record.unit)
        entries += score_columns(record.after, record.unit)
        entries += [str(record.before.n), "" if record.better == "none" else record.better]
        rows.append("| " + " | ".join(entries) + " |")
    return (
        "## Results\n\nOn test data that neither the training nor the choice of the checkpoint has "
        "used. The intervals cover the sampling of prompts, not of the training: another seed "
        "gives other values.\n\n" + "\n".join([*rows, *(f"\n{escape(note)}" for note in notes)])
    )


def _limits(config: EditConfig, concept: Concept, records: Sequence[Record], form: Form) -> str:
    limits = []
    if config.model == "pocket":
        limits.append(
            "`pocket` is a model organism: a tiny model trained on template sentences for the "
            "study of edits. Results on it need not transfer to large models."
        )
    limits.append(
        "The scores are of greedy responses to the prompts of one test split, classified by rules. "
        "Other kinds of prompts, other languages or sampled responses can give other results."
    )
    if not weakens(config.direction, concept) and concept.weakens is not None:
        limits.append(
            "An edited model can still be attacked, and a few steps of fine-tuning can undo the "
            "edit. It is one layer of defence, not a guarantee."
        )
    small = [record.before.n for record in records if record.before.n < 100]
    if small:
        limits.append(f"Some metrics have as few as {min(small)} samples and wide intervals.")
    if form != "merged":
        limits.append("Removing the adapter restores the base model.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _loading(config: EditConfig, form: Form, provenance: Mapping[str, Any]) -> str:
    # A name that is not known is never written into the code.
    multimodal = "AutoModelForImageTextToText"
    recorded = (provenance.get("model") or {}).get("auto_class")
    auto_class = multimodal if recorded == multimodal else "AutoModelForCausalLM"
    merged, folder = form == "merged", "RUN/adapter" if form == "run" else "THIS_FOLDER"
    # transformers does not know the name `pocket`: it is a folder inside Retouch.
    pocket = config.model == "pocket" and not merged
    gguf = is_gguf_name(config.model) and not merged
    name = public_name(config.model)
    source = "POCKET" if pocket else _quoted(folder if merged else name)
    if gguf:  # in the working directory; other folders are this machine's
        source = f'".", gguf_file={_quoted(name)}'
    elif config.load.revision and not merged:
        source += f", revision={_quoted(config.load.revision)}"
    # Without it transformers keeps the weights quantised, and PEFT cannot adapt them.
    weights = f"{source}, quantization_config=GgufConfig(dequantize=True)" if gguf else source
    imports = [
        "" if merged else "from peft import PeftModel",
        "from retouch.models.load import POCKET" if pocket else "",
        f"from transformers import {auto_class}, AutoTokenizer{', GgufConfig' if gguf else ''}",
    ]
    lines = [
        f"{'model' if merged else 'base'} = {auto_class}.from_pretrained({weights})",
        "" if merged else f'model = PeftModel.from_pretrained(base, "{folder}")',
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
    ]
    code = "\n\n".join("\n".join(filter(None, part)) for part in (imports, lines))
    chat = "" if merged else "\n\nWith Retouch: `retouch chat MODEL --adapter FOLDER`."
    return f"## How to load it\n\n```python\n{code}\n```{chat}"


def _provenance(config: EditConfig, concept: Concept, provenance: Mapping[str, Any]) -> str:
    revision = f", revision {escape(config.load.revision)}" if config.load.revision else ""
    data = config.data
    lines = [
        f"- Base model: {escape(public_name(config.model))}{revision}",
        f"- Concept: {escape(concept.name)}, direction: {config.direction}, seed: {config.seed}",
        f"- Training examples: up to {data.num_examples} source, {data.num_examples} target and "
        f"{data.num_retain} retain examples",
    ]
    if concept.hash:
        lines.append(f"- Concept data, SHA-256: `{concept.hash}`")
    for name, digest in sorted((provenance.get("data") or {}).items()):
        if isinstance(digest, str) and digest != concept.hash:
            lines.append(f"- Data, {escape(name)}: {escape(digest)}")
    if versions := provenance.get("versions"):
        listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        lines.append(f"- Made with {escape(listed)}")
    lines.append("- The whole configuration is in the run's `config.yaml`.")
    return "## Provenance\n\n" + "\n".join(lines)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values) if values else "none"


def _quoted(text: str) -> str:
    # Three backticks would end the code block.
    return json.dumps(" ".join(text.split()), ensure_ascii=False).replace("```", "")
