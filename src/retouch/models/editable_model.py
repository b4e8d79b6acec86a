"""A model with its tokenizer, and whatever acts on it: an adapter, steering, a prompt."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from retouch.core.chat_template import template_variables
from retouch.core.checkpoints import Checkpoints
from retouch.core.config import QUANTIZE, Dtype, LoadConfig
from retouch.core.errors import ModelError
from retouch.core.types import Message
from retouch.models.bfloat16_linears import Bfloat16Linears, make_bfloat16_linears
from retouch.models.interventions import Intervention
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.offload import OffloadPlan
from retouch.models.weights import check_finite

IN_MEMORY = "in-memory-model"  # the name of a model that was loaded from nowhere
HASHED_VALUES = 64  # of each weight that a fingerprint covers


@dataclass
class EditableModel:
    """A model with what belongs to it.

    Attributes:
        model: the transformers model, or PEFT's wrapper of it once it has an adapter.
        tokenizer: its tokenizer, padding on the right.
        name: what the user called it.
        revision: the hub revision, if one was given.
        device: where its inputs go.
        layout: where its blocks are.
        interventions: what acts on the model besides an adapter: steering, a prompt.
        sharded: whether several processes hold a part of the weights each.
        offload_plan: where the parts of the model are, under a device memory limit.
        in_memory: whether the caller loaded it with transformers.
        loaded_with: the settings that `models.load.load` loaded it with.
        checkpoints: those of the run that edits it now, where the base model's responses are kept.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    device: torch.device
    layout: ModelLayout
    interventions: list[Intervention] = field(default_factory=list)
    sharded: bool = False
    offload_plan: OffloadPlan | None = None
    in_memory: bool = False
    loaded_with: LoadConfig | None = None
    checkpoints: Checkpoints | None = None
    _linears: tuple[Bfloat16Linears | None] | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_transformers(
        cls, model: Any, tokenizer: Any, name: str | None = None
    ) -> EditableModel:
        """Wrap a transformers model that is loaded already; it is frozen and set to evaluation.

        Args:
            model: a causal language model of transformers, quantised or not.
            tokenizer: its tokenizer, which is copied.
            name: the name to record (default: what it was loaded from).

        Raises:
            ModelError: the model has an adapter already, its blocks are not found, a weight is
                not finite, or the tokenizer has no end token.
        """
        if hasattr(model, "peft_config") and hasattr(model, "disable_adapter"):
            hint = "Pass the base model, or merge the adapter first (`merge_and_unload`)."
            raise ModelError("`model` has an adapter already.", hint, code="model-edited")
        tokenizer = copy.deepcopy(tokenizer)
        name = name or str(getattr(model.config, "_name_or_path", "") or IN_MEMORY)
        check_finite(model, name)
        prepare_tokenizer(tokenizer, name)
        check_tokenizer(tokenizer, model)
        return cls(
            model.requires_grad_(False).eval(),
            tokenizer,
            name,
            getattr(model.config, "_commit_hash", None),
            next(model.parameters()).device,
            find_layout(model),
            in_memory=True,
        )

    @property
    def load_config(self) -> LoadConfig:
        """The settings that load this model again: those given, or else its own."""
        dtype: Any = str(self.base.dtype).removeprefix("torch.")
        bitsandbytes = getattr(self.base.config, "quantization_config", None)
        kinds = [one for one in QUANTIZE if getattr(bitsandbytes, f"load_in_{one}", False)]
        return self.loaded_with or LoadConfig(
            revision=self.revision,
            device=str(self.device),
            dtype=dtype if dtype in get_args(Dtype) else "auto",
            quantize=kinds[0] if kinds else "none",
            chat_template_kwargs=template_variables(self.tokenizer) or None,
        )

    @property
    def adapted(self) -> bool:
        """Whether an adapter is attached."""
        return hasattr(self.model, "disable_adapter")

    @property
    def edited(self) -> bool:
        """Whether anything acts on the base model: an adapter or an intervention."""
        return self.adapted or bool(self.interventions)

    @property
    def base(self) -> Any:
        """The transformers model, without PEFT's wrapper."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def quantised(self) -> bool:
        """Whether the base model's weights are quantised."""
        return bool(getattr(self.base, "is_quantized", False))

    @property
    def auto_class(self) -> str:
        """The transformers class that loads the base model."""
        multimodal = type(self.base).__name__.endswith("ForConditionalGeneration")
        return "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template; without one a plain format is used."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens; None where the configuration gives no limit."""
        limit = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of a sample of every weight of the base model, in hexadecimal.

        Adapters and interventions are not part of it.
        """
        digest = hashlib.sha256()
        for name, weight in self.base.named_parameters():
            plain = name.replace(".base_layer", "")
            if "lora_" in plain or weight.is_meta:
                continue
            flat = weight.detach().reshape(-1)
            step = max(1, flat.numel() // HASHED_VALUES)
            digest.update(f"{plain}{tuple(weight.shape)}".encode())
            digest.update(flat[::step].float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @contextmanager
    def compute_precision(self) -> Iterator[None]:
        """Multiply the frozen weights in the configured `compute_dtype` inside the context."""
        if self._linears is None:
            self._linears = (self._make_linears(),)
        linears = self._linears[0]
        with nullcontext() if linears is None else linears.applied(self.adapted_linears().values()):
            yield

    def adapted_linears(self) -> dict[str, Any]:
        """PEFT's LoRA wrappers of linear layers in the blocks, by layer and name."""
        return {
            f"{layer}.{name}": module
            for layer, block in enumerate(self.blocks if self.adapted else ())
            for name, module in block.named_modules()
            if hasattr(module, "base_layer") and hasattr(module, "lora_A")
        }

    @property
    def precision(self) -> str:
        """The dtype of the weights, and that of the products where it is another one."""
        with self.compute_precision():
            made = self._linears
        dtype = str(self.base.dtype).removeprefix("torch.")
        return f"{dtype}, bfloat16 products" if made is not None and made[0] else dtype

    def _make_linears(self) -> Bfloat16Linears | None:
        """Copies of the blocks' linear layers, and of the one that computes the logits."""
        modules = [
            module
            for block in self.blocks
            for name, module in block.named_modules()
            if type(module) is torch.nn.Linear and "lora_" not in name
        ]
        head = getattr(self.base, "get_output_embeddings", lambda: None)()
        modules += [head] if type(head) is torch.nn.Linear else []
        dtype = self.loaded_with.compute_dtype if self.loaded_with else "auto"
        return make_bfloat16_linears(modules, dtype)

    @contextmanager
    def base_model(self) -> Iterator[None]:
        """Switch adapters and interventions off inside the context."""
        acting = [one for one in self.interventions if one.active]
        for one in acting:
            one.active = False
        try:
            with self.model.disable_adapter() if self.adapted else nullcontext():
                yield
        finally:
            for one in acting:
                one.active = True

    def intervene(self, intervention: Intervention) -> None:
        """Add an intervention, active from now on."""
        intervention.attach(self.blocks)
        self.interventions.append(intervention)

    def rewrite_prompt(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        """The prompt with what the active interventions add to it; running text has none."""
        prompt = tuple(prompt)
        for one in self.interventions:
            if one.active and prompt:
                prompt = one.rewrite(prompt)
        return prompt

    @property
    def free_bytes(self) -> int | None:
        """Bytes of the device beside the weights, under a device memory limit."""
        return None if self.offload_plan is None else self.offload_plan.free_bytes

    def keep_on_device(self, layers: Iterable[int]) -> None:
        """Keep layers on the device from now on, since they are trained.

        Raises:
            ModelError: they do not fit into the device memory limit.
        """
        if self.offload_plan is not None:
            self.offload_plan.keep_on_device(self.model, layers)

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The decoder's blocks, in order."""
        return self.layout.blocks(self.model)

    def merged_copy(self) -> EditableModel:
        """The same model on weights of its own: adapter merged, interventions carried over.

        Copy and original share only the tokenizer.

        Raises:
            ModelError: an adapter is on quantised weights, which would round it, or not all of the
                weights are on the device.
        """
        if self.offload_plan is not None and not self.offload_plan.whole:
            message = f"{self.name} cannot be copied while layers are offloaded."
            hint = "Load it without a device memory limit, on the CPU if necessary."
            raise ModelError(message, hint, code="model-offloaded")
        if self.adapted and self.quantised:
            message = f"An adapter cannot be merged into the quantised weights of {self.name}."
            hint = "Load the model unquantised (`quantize` none) and merge the adapter into that."
            raise ModelError(message, hint, code="model-quantised")
        # A hook is a function, which deepcopy shares: the copy's blocks would call the original's
        # interventions. So they are detached while the model is copied.
        for one in self.interventions:
            one.detach()
        try:
            model = copy.deepcopy(self.model)
            interventions = copy.deepcopy(self.interventions)
        finally:
            for one in self.interventions:
                one.attach(self.blocks)
        if self.adapted:
            model = model.merge_and_unload()
        model.requires_grad_(False).eval()
        copied = dataclasses.replace(self, model=model, interventions=[])
        for one in interventions:
            copied.intervene(one)
        return copied


def prepare_tokenizer(tokenizer: Any, name: str) -> None:
    """Set padding to the right and give the tokenizer a padding token.

    Raises:
        ModelError: it has no end token.
    """
    if tokenizer.eos_token_id is None:
        message = f"The tokenizer of {name} has no end token."
        hint = "Set `eos_token` in its tokenizer_config.json."
        raise ModelError(message, hint, code="tokenizer-no-eos")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Check that a tokenizer can be used with a model, which is None if it is not known.

    Raises:
        ModelError: it has tokens that the model does not embed, or several chat templates without a
            default.
    """
    embedded = None if model is None else model.get_input_embeddings().weight.shape[0]
    if embedded is not None and max(len(tokenizer), 1 + tokenizer.pad_token_id) > embedded:
        message = f"The tokenizer has {len(tokenizer):,} tokens, the model embeds {embedded:,}."
        hint = "Use the model's own tokenizer."
        raise ModelError(message, hint, code="tokenizer-mismatch")
    templates = getattr(tokenizer, "chat_template", None)
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(sorted(templates))[:200]
        message = f"The tokenizer has the chat templates {names}, and none is named `default`."
        hint = "Set `chat_template` to a file of the one to use."
        raise ModelError(message, hint, code="chat-template-no-default")
