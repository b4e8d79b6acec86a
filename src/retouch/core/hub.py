"""Ask the Hugging Face Hub for a repository before anything is loaded from it.

The libraries that load from the hub repeat each request for half a minute where it cannot be
reached, and say so on every try.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from retouch.core.errors import RetouchError
from retouch.core.model_names import MODEL_HINT

TIMEOUT = 10.0  # seconds to wait for the hub


def list_hub_files(
    name: str,
    revision: str | None = None,
    *,
    raises: type[RetouchError],
    kind: Literal["model", "dataset"] = "model",
    hint: str = "",
) -> dict[str, int | None]:
    """The files of a repository on the hub, with their sizes in bytes; one request.

    Args:
        name: its id.
        revision: a branch, tag or commit.
        raises: the class of the error.
        kind: what it is a repository of.
        hint: what else to do, for the error.

    Raises:
        RetouchError: of the class; there is no such repository, it is gated, or the hub cannot be
            reached (code `hub-unreachable`).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        info = ask(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except HFValidationError:
        code, message = f"{kind}-not-found", f"There is no folder {name}."
        advice = MODEL_HINT if kind == "model" else "Check the path."
    except GatedRepoError:
        code, message = f"{kind}-gated", f"{name} is gated, and this account has no access to it."
        advice = "Request access on its page, then run `hf auth login`."
    except RepositoryNotFoundError:
        code, message = f"{kind}-not-found", f"The hub has no {kind} {name}, or it is private."
        advice = "Check the name."
    except Exception as error:  # the hub's client raises errors of several network libraries
        code, advice = "hub-unreachable", "Connect to the network, or give a local folder."
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        message = f"{name} is not completely cached, and the hub cannot be reached: {reason}."
    else:
        return {file.rfilename: file.size for file in info.siblings or ()}
    raise raises(message, f"{advice} {hint}".strip(), code=code)


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """The cached folder of a hub model, as far as it was downloaded; None without one."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None
