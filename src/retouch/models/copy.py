"""A copy of a model to do with as one likes: what acted on the weights is merged into them."""

from __future__ import annotations

import copy
import dataclasses

from retouch.core.errors import ModelError
from retouch.models.load import LoadedModel


def merged_copy(loaded: LoadedModel) -> LoadedModel:
    """The same model on weights of its own: the adapter merged in, the interventions carried over.

    Copy and original share nothing but the tokenizer: an intervention that is switched off, or
    weights that are trained, on one of them leave the other as it is. The original is unchanged.

    Raises:
        ModelError: an adapter is on quantised weights, which would round it away in part, or not
            all of the weights are on the device.
    """
    if loaded.placement is not None and not loaded.placement.whole:
        raise ModelError(
            f"{loaded.name} cannot be copied while most of its weights are elsewhere.",
            "Load it without --device-memory, on the CPU if need be.",
        )
    if loaded.adapted and loaded.quantised:
        raise ModelError(
            f"An adapter cannot be merged into {loaded.name} while its weights are quantised.",
            "Load the model unquantised (`--quantize none`), and merge the adapter into that.",
        )
    # A hook is a function, which deepcopy shares: the copy's block would ask the original's
    # intervention whether it is active. So nothing may hang on the blocks while they are copied.
    for one in loaded.interventions:
        one.detach()
    try:
        model = copy.deepcopy(loaded.model)
        interventions = copy.deepcopy(loaded.interventions)
    finally:
        for one in loaded.interventions:
            one.attach(loaded.blocks)
    if loaded.adapted:
        model = model.merge_and_unload()
    model.requires_grad_(False)
    model.eval()
    twin = dataclasses.replace(loaded, model=model, interventions=[])
    for one in interventions:
        twin.intervene(one)
    return twin
