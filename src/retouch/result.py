"""The result of an edit: the model, what was measured, and where it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retouch.core.config import EditConfig
from retouch.core.errors import RunError
from retouch.core.metrics import Metrics
from retouch.core.run_dir import RunDir
from retouch.core.types import Sample
from retouch.evaluation.outcome import Outcome
from retouch.models.editable_model import EditableModel
from retouch.reporting.export import export


@dataclass
class EditResult:
    """A finished edit.

    Attributes:
        path: the run directory.
        config: the resolved configuration.
        metrics: before and after, with intervals.
        samples: the generations that the metrics are computed from.
        editable: the model with its adapter; None where the run was read back from disk.
        outcome: whether the effect moved as declared, and the side effects; None in the run of an
            earlier version.
    """

    path: Path
    config: EditConfig
    metrics: Metrics = field(default_factory=Metrics)
    samples: Sequence[Sample] = field(default=(), repr=False)
    editable: EditableModel | None = field(default=None, repr=False)
    outcome: Outcome | None = None

    @property
    def model(self) -> Any:
        """The `peft.PeftModel`, ready to generate.

        Raises:
            RunError: the run was read back from disk, without a model.
        """
        return self._editable().model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model.

        Raises:
            RunError: the run was read back from disk, without a model.
        """
        return self._editable().tokenizer

    def save_pretrained(self, folder: Path | str, *, allow_weakening: str | None = None) -> Path:
        """Write the adapter and its model card to a new folder, for PEFT and `retouch.evaluate`.

        Args:
            folder: a new or empty folder.
            allow_weakening: the reason, where the edit weakens safety (default: the edit's, unless
                the run was read back from disk).

        Raises:
            RefusedError: the edit weakens safety, and there is no reason.
            RunError: the folder is not empty, or cannot be written.
        """
        if allow_weakening is None and self.editable is not None:
            allow_weakening = self.config.allow_weakening
        return export(RunDir(self.path), "peft", Path(folder), allow_weakening=allow_weakening)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        allow_weakening: str | None = None,
    ) -> str:
        """Upload the adapter and its model card to a model repository of the Hugging Face hub.

        Args:
            repo_id: `owner/name`; the repository is created if it does not exist.
            private: whether a new repository is private (default: the owner's setting).
            token: a hub token (default: the one that `hf auth login` stored).
            allow_weakening: as for `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            RefusedError: the edit weakens safety, and there is no reason.
            RunError: the hub refuses the upload or is not reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            exported = self.save_pretrained(
                Path(folder, "adapter"), allow_weakening=allow_weakening
            )
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=str(exported),
                    commit_message=f"Edit of {self.config.concept} by Retouch",
                )
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                raise RunError(
                    f"{repo_id} was not uploaded: {reason}",
                    "Check the repository's name and the token (`hf auth login`).",
                    code="upload-failed",
                ) from None
        return str(commit)

    def _editable(self) -> EditableModel:
        if self.editable is None:
            raise RunError(
                f"The run {self.path} was read from disk, without its model.",
                f"Load it: retouch.load({self.config.model!r}, adapter={str(self.path)!r}).",
                code="model-not-loaded",
            )
        return self.editable

    def _repr_html_(self) -> str:
        config = self.config
        title = f"{config.model}: {config.concept}, {config.direction}"
        return (
            f"<p><b>{escape(title)}</b><br>{escape(self.outcome.text if self.outcome else '')}"
            f"<br><code>{escape(str(self.path))}</code></p>"
            f"{self.metrics._repr_html_()}"
        )
