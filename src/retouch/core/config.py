"""The configuration schema, from which `core.options` derives options, search space and tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, JsonValue

from retouch.core.errors import ConfigError
from retouch.core.model_names import MODEL_HELP
from retouch.core.strict_model import StrictModel
from retouch.core.types import Direction
from retouch.core.units import parse_size

Quantize = Literal["none", "8bit", "4bit"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Suites = Literal["all", "concept", "none"]
LearningRateSchedule = Literal["cosine", "constant"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
DiscriminatorObjective = Literal["standard", "relativistic", "wasserstein", "feature-matching"]
InitLoraWeights = Literal["contrast", "random"]

QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
LEARNING_RATE_SCHEDULES: tuple[LearningRateSchedule, ...] = get_args(LearningRateSchedule)
MAX_SEED = 2**32 - 1  # the largest that torch, NumPy and Optuna all take
AUTO_CONCEPT = "auto"  # resolved with the model, so that a recorded configuration has a name


def option(
    default: Any,
    description: str,
    *,
    flag: str | None = None,
    aliases: tuple[str, ...] = (),
    search: tuple[float, float] | None = None,
    log: bool = False,
    choices: tuple[Any, ...] = (),
    **constraints: Any,
) -> Any:
    """A field of a configuration group or of a method's settings.

    Args:
        default: the default value.
        description: one line for the help text and the reference table.
        flag: the option's name on the command line (default: `--` and the field's name).
        aliases: further names of the option.
        search: the range that `retouch tune` searches; integers where `default` is one.
        log: whether that range is searched on a logarithmic scale.
        choices: the values that `retouch tune` searches, in place of a range.
        constraints: pydantic's constraints, such as `ge=1`.
    """
    extra: dict[str, Any] = {"flag": flag, "aliases": list(aliases)}
    if choices:
        extra["search"] = {"choices": list(choices)}
    elif search is not None:
        extra["search"] = {"low": search[0], "high": search[1], "log": log}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def _check_size(text: str) -> str:
    try:
        parse_size(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None  # the exception type that pydantic reports
    return text


Size = Annotated[str, AfterValidator(_check_size)]

# What `apply_chat_template` takes itself, and what the turns are in a template.
_RESERVED = frozenset(
    """conversation messages tools documents chat_template add_generation_prompt tokenize padding
    continue_final_message sanitize_control_tokens truncation max_length return_tensors return_dict
    return_assistant_tokens_mask tokenizer_kwargs strftime_now""".split()  # noqa: SIM905
)


def _check_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    for name in values:
        if not name.isidentifier() or name in _RESERVED:
            raise ValueError(f"has the name {name!r:.100}, which no template variable can have")
    return dict(values)


def _check_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"must be a date or a time in ISO 8601, got {text!r:.100}") from None
    return text


TemplateVariables = Annotated[dict[str, JsonValue], AfterValidator(_check_variables)]
IsoTime = Annotated[str, AfterValidator(_check_time)]


class LoadConfig(StrictModel):
    """How the base model is loaded."""

    revision: str | None = option(None, "hub revision: branch, tag or commit")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    dtype: Dtype = option(
        "auto", "dtype of the weights; auto is float32 on the CPU and bfloat16 on a GPU"
    )
    compute_dtype: ComputeDtype = option(
        "auto",
        "dtype in which a CPU multiplies the frozen weights in training and generation: auto is "
        "bfloat16 where the processor has AMX or AVX512-BF16 and the model is large enough to gain",
    )
    quantize: Quantize = option("none", "bits of the frozen weights, through bitsandbytes")
    chat_template: str | None = option(
        None, "file with a Jinja chat template (default: the tokenizer's own)"
    )
    chat_template_kwargs: TemplateVariables | None = option(
        None, "variables of the chat template, such as enable_thinking=false"
    )
    chat_template_time: IsoTime | None = option(
        None,
        "date or time that a chat template gets which reads the clock, in ISO 8601 "
        "(default: that of loading, which the run records)",
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")
    max_device_memory: Size | None = option(
        None,
        "device memory limit, such as 24GiB; the other layers are offloaded and streamed "
        "(default: the whole model stays on the device)",
    )
    fsdp: bool = option(False, "shard the frozen weights over the launched processes (FSDP2)")

    @property
    def max_device_bytes(self) -> int | None:
        """`max_device_memory` in bytes."""
        return None if self.max_device_memory is None else parse_size(self.max_device_memory)


class DataConfig(StrictModel):
    """Which examples an edit uses."""

    num_examples: int = option(
        128,
        "labelled source examples, each with its target counterpart and its wrapped forms",
        ge=2,
    )
    num_retain: int = option(960, "examples of the retain set, which need no labels", ge=0)
    retain_concepts: tuple[str, ...] = option(
        (),
        "further concepts whose examples are retained, so that edits of them can be merged with "
        "this one",
    )
    source_filter: str | None = option(
        None, "training examples to use as the source: LABEL, or LABEL:GROUP"
    )
    prefill_tokens: int = option(
        8, "maximum prefill length in tokens for prefill-attack examples (0 disables)", ge=0
    )
    prefills_per_example: float = option(
        0.25,
        "prefill-attack examples per source example, below 1 for a share of them; of several, "
        "every other one uses the target's prompt",
        gt=0,
    )
    wrapped_share: float = option(
        0.25,
        "share of the labelled source examples whose wrapped forms, such as attacks, are used too",
        ge=0,
        le=1,
    )
    elicit: bool = option(
        True,
        "learn the response that the model itself gives under the target's context, where it shows "
        "the behaviour, rather than a given one",
    )
    max_new_tokens: int = option(
        24, "maximum length of a generated response to learn, in tokens", ge=1
    )
    max_base_tokens: int = option(
        12, "maximum length of a base response to keep or to unlearn, in tokens", ge=1
    )
    ignore_contrast: bool = option(
        False, "train even where the contrast check finds nothing to move the source towards"
    )


class LoraConfig(StrictModel):
    """Where the LoRA adapters go (PEFT's names)."""

    layers_to_transform: tuple[int, ...] | None = option(
        None, "layers that get adapters, 0-based (default: found by causal patching)"
    )
    target_modules: tuple[str, ...] = option(
        (), "suffixes of the names of the linear layers to adapt (default: all)"
    )
    r: int = option(16, "LoRA rank", flag="--lora-r", aliases=("--r",), ge=1)
    init_lora_weights: InitLoraWeights = option(
        "contrast",
        "initial A matrices: contrast reads what source prompts have in excess over retain "
        "prompts; random is PEFT's default",
    )
    lora_alpha: float = option(32.0, "LoRA alpha; the update is scaled by lora_alpha / r", gt=0)


class TrainConfig(StrictModel):
    """The training loop."""

    rounds: int = option(6, "rounds of adversarial training", aliases=("--num-train-rounds",), ge=1)
    steps_per_round: int = option(16, "generator steps per round", ge=1)
    batch_size: int = option(8, "source examples per generator step", ge=1)
    retain_batch_size: int = option(16, "retain examples per generator step", ge=1)
    micro_batch_size: int | None = option(
        None,
        "examples per forward pass (default: the batch, halved whenever memory runs out)",
        ge=1,
    )
    learning_rate: float = option(
        5e-4, "peak learning rate of the generator (Adam)", search=(1e-4, 5e-3), log=True, gt=0
    )
    loraplus_lr_ratio: float = option(
        8.0,
        "ratio of the learning rate of LoRA's B matrices to that of its A matrices (LoRA+)",
        ge=1,
    )
    lr_scheduler_type: LearningRateSchedule = option(
        "cosine", "decay of the learning rate over all rounds: cosine (to a tenth) or constant"
    )
    warmup_ratio: float = option(0.1, "share of all steps with a rising learning rate", ge=0, lt=1)
    ema_decay: float = option(
        0.9, "decay of the exponential moving average of the adapter weights", ge=0, lt=1
    )
    max_drift: float = option(
        0.02,
        "maximum drift of the result: KL to the base on the retain responses, nats a token",
        gt=0,
    )
    max_retain_change: float = option(
        0.05,
        "maximum share of retain examples whose response begins as a target response does after "
        "the edit, and did not before",
        ge=0,
        le=1,
    )
    strengths: tuple[float, ...] = option(
        (0.6, 0.7, 0.8, 0.9, 1.0),
        "adapter strengths to choose from after training: the smallest that keeps the effect, on "
        "the validation split, of the largest within the limits",
        min_length=1,
    )
    patience: int = option(4, "rounds without improvement before training stops", ge=1)
    activation_cache: Size | None = option(
        None,
        "memory for cached activations, such as 8GiB; what exceeds it is memory-mapped from disk "
        "(default: half of the free memory)",
    )

    @property
    def activation_cache_bytes(self) -> int | None:
        """`activation_cache` in bytes."""
        return None if self.activation_cache is None else parse_size(self.activation_cache)


class LossConfig(StrictModel):
    """Weights of the generator's loss."""

    adversarial_weight: float = option(
        0.1, "weight of the adversarial loss", search=(0.01, 3.0), log=True, ge=0
    )
    matching_weight: float = option(
        0.3,
        "weight of matching the states of the target counterparts",
        search=(0.1, 20.0),
        log=True,
        ge=0,
    )
    sft_weight: float = option(
        1.0,
        "weight of the cross-entropy of the target responses; where a gap between two choices is "
        "reduced, of making both equally likely",
        ge=0,
    )
    npo_weight: float = option(
        0.0,
        "weight of making the responses of the source less likely than under the base (negative "
        "preference optimisation)",
        ge=0,
    )
    npo_beta: float = option(0.1, "inverse temperature of that", gt=0)
    distillation_weight: float = option(
        0.0,
        "weight of the KL divergence from the base after the target counterparts, at the target "
        "responses",
        ge=0,
    )
    kl_weight: float = option(
        12.0,
        "weight of the KL divergence from the base on the retain responses",
        search=(1.0, 30.0),
        log=True,
        ge=0,
    )
    retain_weight: float = option(5.0, "weight of keeping the retain set's states", ge=0)
    first_token_weight: float = option(
        4.0, "weight of a response's first position relative to the others", gt=0
    )
    match_prompt_suffix: bool = option(
        False, "also match states at the tokens that both prompts end in"
    )

    @property
    def uses_logits(self) -> bool:
        """Whether a term is read at the logits, so that all layers above the first are run."""
        weights = (self.sft_weight, self.npo_weight, self.distillation_weight, self.kl_weight)
        return max(weights) > 0


class DiscriminatorConfig(StrictModel):
    """The representation discriminators."""

    layers: tuple[int, ...] | None = option(
        None, "layers whose outputs the discriminators read, 0-based (default: found by patching)"
    )
    positions: int = option(
        4, "response positions the discriminators read, from the last prompt token on", ge=1
    )
    hidden_size: int = option(256, "hidden size; 0 makes them linear", ge=0)
    learning_rate: float = option(1e-3, "learning rate of the discriminators (Adam)", gt=0)
    warmup_steps: int = option(60, "discriminator steps before the first round", ge=1)
    steps_per_round: int = option(20, "discriminator steps per round", ge=1)
    batch_size: int = option(
        0, "states of each class in a discriminator step, drawn at random (0: all)", ge=0
    )
    reset_each_round: bool = option(
        False, "train the discriminators from scratch every round, as in the paper"
    )
    label_smoothing: float = option(0.1, "label smoothing", ge=0, lt=0.5)
    objective: DiscriminatorObjective = option(
        "standard",
        "loss of generator and discriminators: the cross-entropy of single states (standard) or of "
        "pairs of a target and a source state (relativistic), the difference of mean outputs "
        "(wasserstein), or for the generator that of mean features (feature-matching)",
    )
    gradient_penalty: float = option(
        0.0,
        "weight of the squared norm of the discriminators' gradients at target and source states "
        "(R1 and R2)",
        ge=0,
    )
    spectral_norm: bool = option(
        False, "divide the discriminators' weight matrices by their spectral norms"
    )


class AdversaryConfig(StrictModel):
    """Adversaries that the generator is trained against besides the discriminators."""

    latent_epsilon: float = option(
        0.0, "latent-attack radius as a fraction of each hidden state's norm (0 disables)", ge=0
    )
    latent_steps: int = option(2, "gradient steps of the latent attack", ge=1)
    finetune_steps: int = option(
        0, "training steps of the fine-tuning adversary, new in every round (0 disables)", ge=0
    )
    finetune_learning_rate: float = option(
        2e-3, "learning rate of the fine-tuning adversary (Adam)", gt=0
    )
    finetune_spread: float = option(
        1.0,
        "factor up to which the learning rate of each fine-tuning adversary is higher or lower; "
        "above 1 its schedule is drawn too, constant or cosine",
        ge=1,
    )
    finetune_weight: float = option(
        0.5, "weight of the target responses' loss under the adversary's update", ge=0
    )


class EvaluationConfig(StrictModel):
    """What is measured after training, on the test splits."""

    suites: Suites = option(
        "all", "what is measured: all built-in concepts, the edited concept alone, or none"
    )
    limit: int = option(64, "maximum number of examples per metric (0: the whole split)", ge=0)
    max_new_tokens: int = option(
        64,
        "maximum length of a response that is measured, in tokens",
        flag="--evaluation-max-new-tokens",
        ge=1,
    )


class MethodConfig(StrictModel):
    """The groups that are settings of the method, and not of the task or the machine."""

    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    adversary: AdversaryConfig = AdversaryConfig()


class EditConfig(StrictModel):
    """Everything that determines an edit."""

    model: str = option("pocket", MODEL_HELP)
    concept: str = option(
        AUTO_CONCEPT,
        "a built-in concept, or a file: CSV, TSV, JSON, JSONL, Parquet, Arrow or YAML; auto is "
        "safety, and pocket-safety for pocket",
    )
    direction: Direction = option("raise", "raise the concept or lower it")
    seed: int = option(
        0,
        "random seed of the examples, the initial weights and the batches",
        ge=0,
        le=MAX_SEED,
    )
    allow_weakening: str | None = option(
        None, "the reason for an edit that weakens safety; it is written on the model card"
    )
    load: LoadConfig = LoadConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def method(self) -> MethodConfig:
        """The settings of the method."""
        return MethodConfig(**{name: getattr(self, name) for name in MethodConfig.model_fields})
