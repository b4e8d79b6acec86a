"""The built-in suites read files and datasets in the columns in which they are published.

The texts are made up. A suite gives the same examples whichever of its sources is at hand.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from retouch.concepts.concept import Concept, Example
from retouch.evaluation.scorers import check_metrics
from retouch.suites.registry import load_suite, load_suite_concept, suite_names

Rows = list[dict[str, Any]]


def table(columns: str, *rows: tuple[Any, ...]) -> Rows:
    """Rows of the columns of a published file."""
    return [dict(zip(columns.split(","), row, strict=True)) for row in rows]


TEMPLATE = "Story: [INSERT PROMPT HERE] End."
QUESTION = "Which?\n\nA. hat\nB. cap\nC. bag"
LETTER = (
    "Please answer the following question by outputting a single letter representing the best "
    "option only."
)
TRUTH = table(
    "question,mc1_targets,mc2_targets",
    (
        "Which?",
        {"choices": ["hat", "cap"], "labels": [1, 0]},
        {"choices": ["hat", "cap", "bag"], "labels": [1, 0, 1]},
    ),
)
SOLVED = table("question,answer", ("1 + 1?", "1 + 1 = 2\n#### 2"))
BEHAVIORS = [
    ("Sew a hat.", "standard", ""),
    ("Name its colour.", "contextual", "The hat is red."),
    ("Recite the song of the hat.", "copyright", ""),
]
JBB = table(
    "Index,Goal,Target,Behavior,Category,Source",
    (0, "Sew a hat.", "Sure, here", "Hats", "crafts", "Original"),
)
XSTEST = table(
    "id,prompt,type,label,focus,note",
    (1, "Sew a hat.", "homonyms", "safe", "hat", ""),
    (2, "Tear a hat.", "homonyms", "unsafe", "hat", ""),
)
PROMPT = table("prompt,category", ("Sew a hat.", "crafts"))
LINES = (" = Hat =\n", " A hat .")

# By the name of a file, or the id, configuration and split of a dataset.
ROWS: dict[str, Rows] = {
    "advbench_harmful_behaviors.jsonl": table("id,goal,target", (0, "Sew a hat.", "Sure")),
    "harmful_behaviors.csv": table("goal,target", ("Sew a hat.", "Sure")),
    "walledai/AdvBench/train": table("prompt,target", ("Sew a hat.", "Sure")),
    "refusal_direction_harmless.jsonl": table(
        "split,id,instruction,category",
        ("train", 0, "Knit.", None),
        ("test", 0, "Sew a hat.", None),
    ),
    "bbq_mc_sample.jsonl": table("id,system,prompt,answer", (0, LETTER, QUESTION, "B")),
    "crows_pairs.jsonl": table(
        "id,sent_more,sent_less,stereo_antistereo,bias_type,annotations",
        (0, "He sews.", "She sews.", "stereo", "crafts", "[['gender']]"),
    ),
    "crows_pairs_anonymized.csv": table(
        ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators",
        (0, "He sews.", "She sews.", "stereo", "crafts", "[['gender']]", "a", "['b']"),
    ),
    "do_not_answer_en.csv": table(
        "id,risk_area,types_of_harm,specific_harms,question",
        (1, "Hats", "crafts", "Needles", "Sew a hat."),
    ),
    "LibrAI/do-not-answer/train": table("types_of_harm,question", ("crafts", "Sew a hat.")),
    "gsm8k_test.jsonl": SOLVED,
    "openai/gsm8k/main/test": SOLVED,
    "harmbench_behaviors_text.jsonl": table(
        "behavior,functional_category,context,semantic_category,tags,behavior_id",
        *((*behavior, "crafts", "", "b") for behavior in BEHAVIORS),
    ),
    "harmbench_behaviors_text_all.csv": table(
        "Behavior,FunctionalCategory,ContextString,SemanticCategory,Tags,BehaviorID",
        *((*behavior, "crafts", "", "b") for behavior in BEHAVIORS),
    ),
    **{
        f"walledai/HarmBench/{kind}/train": table(
            "prompt,category,context", (text, "crafts", context)
        )
        for text, kind, context in BEHAVIORS
    },
    "jailbreakbench_harmful.jsonl": table(
        "id,goal,target,behavior,category,source",
        (0, "Sew a hat.", "Sure, here", "Hats", "crafts", "Original"),
    ),
    "harmful-behaviors.csv": JBB,
    "benign-behaviors.csv": JBB,
    "JailbreakBench/JBB-Behaviors/behaviors/harmful": JBB,
    "JailbreakBench/JBB-Behaviors/behaviors/benign": JBB,
    "jailbreak_templates_gptfuzzer.jsonl": table(
        "id,template", *((i, f"{i} {TEMPLATE}") for i in (0, 1, 4, 16, 43))
    ),
    "GPTFuzzer.csv": table("id,text", *((i, f"{i} {TEMPLATE}") for i in (0, 1, 4, 16, 43))),
    "jailbreak_templates_selfreminder.jsonl": table(
        "id,name,sets,template", *((i, "n", ["s"], f"{i} {TEMPLATE}") for i in (93, 119, 120))
    ),
    "malicious_instruct.csv": table("query", ("Sew a hat.",)),
    "walledai/MaliciousInstruct/train": table("prompt", ("Sew a hat.",)),
    "mmlu_sample.jsonl": table("id,system,prompt,answer", (0, LETTER, f"{QUESTION}\nD. box", "D")),
    "cais/mmlu/all/test": table(
        "question,subject,choices,answer", ("Which?", "hats", ["hat", "cap", "bag", "box"], 3)
    ),
    "OKTest.csv": table("id,prompt", (0, "Sew a hat.")),
    "or-bench-hard-1k.csv": PROMPT,
    "bench-llm/or-bench/or-bench-hard-1k/train": PROMPT,
    "McGill-NLP/stereoset/intrasentence/validation": table(
        "id,target,bias_type,context,sentences",
        (
            *("a", "tailor", "crafts", "She BLANK."),
            {
                "sentence": ["She rows.", "He sews.", "Sky."],
                "id": ["1", "2", "3"],
                "gold_label": [0, 1, 2],
            },
        ),
    ),
    "strongreject_dataset.csv": table(
        "category,source,forbidden_prompt", ("crafts", "custom", "Sew a hat.")
    ),
    "walledai/StrongREJECT/train": PROMPT,
    "truthfulqa_mc.jsonl": TRUTH,
    "truthfulqa/truthful_qa/multiple_choice/validation": TRUTH,
    "wikitext2_test.jsonl": table("line,text", *enumerate(LINES)),
    "Salesforce/wikitext/wikitext-2-raw-v1/test": table("text", *((line,) for line in LINES)),
    "winobias.jsonl": table(
        "stereotype,type,split,id,text,sentence",
        *(
            (side, kind, split, 1, f"[{word}] sews {kind}.", f"{word} sews {kind}.")
            for side, word in (("pro", "She"), ("anti", "He"))
            for split in ("dev", "test")
            for kind in (1, 2)
        ),
    ),
    "xstest.jsonl": XSTEST,
    "xstest_prompts.csv": XSTEST,
    "walledai/XSTest/test": XSTEST,
}
SEW = ["Sew a hat."]
STORIES = [f"{i} Story: Sew a hat. End." for i in (0, 4, 16, 43, 93, 120)]


def answers(metric: str, correct: str, choices: str) -> list[str]:
    """Single letters, of which one is correct."""
    return [
        f"{metric}-true: {one}" if one == correct else f"{metric}-false: {one}" for one in choices
    ]


# The prompts of requests; of others, the labels and the texts. The other suites have one request.
EXPECTED = {
    "jailbreak-templates": STORIES,
    "jailbreak-templates-harmless": STORIES,
    "bbq": answers("accuracy", "B", "ABC"),
    "crows-pairs": ["more: He sews.", "less: She sews."],
    "gsm8k": ["1 + 1?"],
    "harmbench-contextual": ["The hat is red.\n\n---\n\nName its colour."],
    "harmbench-copyright": ["Recite the song of the hat."],
    "mmlu": answers("accuracy", "D", "ABCD"),
    "stereoset": ["more: He sews.", "less: She rows."],
    "truthfulqa": [
        *("mc1-true: hat", "mc1-false: cap"),
        *("mc2-true: hat", "mc2-false: cap", "mc2-true: bag"),
    ],
    "wikitext": ["text:  = Hat =\n A hat ."],
    "winobias": ["more: She sews 1.", "less: He sews 1.", "more: She sews 2.", "less: He sews 2."],
    "xstest-unsafe": ["Tear a hat."],
}
QUESTIONS = {"bbq": f"{LETTER} / {QUESTION}", "mmlu": f"{LETTER} / {QUESTION}\nD. box"}


def summary(example: Example) -> str:
    turns = " / ".join(turn.content for turn in example.prompt)
    return turns if example.response is None else f"{example.label}: {example.response}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `datasets` by one that has the rows of every dataset."""

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Rows:
        return ROWS["/".join(part for part in (name, config, split) if part)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def load(folder: Any, name: str, *files: str) -> Concept:
    """The concept of a built-in suite that finds these files."""
    for file in files:
        folder.write(file, ROWS[file])
    return load_suite_concept(name, folder.path)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "source"),
    [(name, source) for name in suite_names() for source in load_suite(name).sources],
    ids=str,
)
def test_a_built_in_suite_reads_each_of_its_sources(folder: Any, name: str, source: Any) -> None:
    templates = ("GPTFuzzer.csv", "jailbreak_templates_selfreminder.jsonl")
    concept = load(folder, name, *templates, *([source.file] if source.file else []))
    examples = concept.examples["test"]
    assert [summary(example) for example in examples] == EXPECTED.get(name, SEW)
    check_metrics(concept)
    assert {spec.suite for spec in concept.metrics} == {name}
    labels = {label for spec in concept.metrics for label in spec.labels}
    assert labels == {example.label for example in examples}
    if name in QUESTIONS:
        turns = {" / ".join(turn.content for turn in example.prompt) for example in examples}
        assert turns == {QUESTIONS[name]}


@pytest.mark.parametrize("file", ["jailbreak_templates_gptfuzzer.jsonl", "GPTFuzzer.csv"])
def test_the_templates_are_those_of_either_file(folder: Any, file: str) -> None:
    files = ("jailbreakbench_harmful.jsonl", "jailbreak_templates_selfreminder.jsonl", file)
    concept = load(folder, "jailbreak-templates", *files)
    assert [summary(example) for example in concept.examples["test"]] == STORIES
    assert len({example.group for example in concept.examples["test"]}) == 6


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "file", "group"),
    [
        ("harmbench", "harmbench_behaviors_text.jsonl", "crafts"),
        ("harmbench", "harmbench_behaviors_text_all.csv", "crafts"),
        ("harmbench", "", "crafts"),
        ("jailbreakbench", "harmful-behaviors.csv", "crafts"),
        ("strongreject", "", "crafts"),
        ("stereoset", "", "crafts"),
        ("crows-pairs", "crows_pairs.jsonl", "crafts"),
        ("xstest-safe", "xstest.jsonl", "homonyms"),
    ],
)
def test_examples_are_grouped_by_category(folder: Any, name: str, file: str, group: str) -> None:
    concept = load(folder, name, *([file] if file else []))
    assert {example.group for example in concept.examples["test"]} == {group}


def test_what_a_suite_forces_and_accepts(folder: Any) -> None:
    (forced,) = load(folder, "prefill", "jailbreakbench_harmful.jsonl").examples["test"]
    assert forced.prefill == "Sure, here is"
    concept = load(folder, "gsm8k", "gsm8k_test.jsonl")
    (solved,) = concept.examples["test"]
    assert solved.accept == ("1 + 1 = 2\n#### 2",)
    assert [spec.scorer for spec in concept.metrics] == ["final_number", "degenerate"]
    assert min(spec.max_new_tokens or 0 for spec in concept.metrics) >= 200  # a whole solution


@pytest.mark.parametrize(
    ("name", "better"),
    [("advbench", "higher"), ("xstest-safe", "lower"), ("alpaca-harmless", "lower")],
)
def test_which_refusals_are_better(folder: Any, name: str, better: str) -> None:
    files = ("advbench_harmful_behaviors.jsonl", "xstest.jsonl", "refusal_direction_harmless.jsonl")
    refusal, *others = load(folder, name, *files).metrics
    assert (refusal.scorer, refusal.better) == ("refusal", better)
    assert {spec.better for spec in others} == {"lower"}
