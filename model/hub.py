"""Trained weights in the layout of the Hugging Face Hub: config.json, model.safetensors, README.md.

config.json is the record of the weights, README.md a card made from it.
`hf://owner/name@revision` names them wherever weights are named. Nothing that is fetched is executed: weights
are safetensors, the record is checked against this package's own configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from safetensors.torch import save

from model.hub_card import model_card
from model.inference import Fuser, load_weights
from model.network import RWKVFusion
from model.record import HUB_RECORD, HUB_WEIGHTS
from pipeline.errors import InputError, first_line
from pipeline.images import write_atomically

PREFIX = "hf://"
_ADDRESS = re.compile(re.escape(PREFIX) + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FAILURES = (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError)


class HubNetwork(RWKVFusion, PyTorchModelHubMixin):
    """The network with `from_pretrained`, `save_pretrained` and `push_to_hub`; ``record`` is its history."""

    record: dict[str, Any]

    @classmethod
    def of(cls, fuser: Fuser) -> HubNetwork:
        """The network of loaded weights."""
        network = cls(fuser.network.config)
        network.load_state_dict(fuser.network.state_dict())
        network.record = fuser.record
        return network.to(fuser.device).eval()

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        config: object = None,
    ) -> HubNetwork:
        """As the mixin calls it; `load_weights` reads config.json again, and checks it."""
        folder = Path(model_id)
        if not folder.is_dir():
            found = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[HUB_RECORD, HUB_WEIGHTS],
            )
            folder = Path(found)
        return cls.of(load_weights(folder, map_location))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Weights, and the record with the checksum of just these weights."""
        content = save({name: value.contiguous() for name, value in self.state_dict().items()})
        record = self.record | {"sha256": hashlib.sha256(content).hexdigest()}
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(save_directory / HUB_WEIGHTS, lambda path: path.write_bytes(content))
        write_atomically(save_directory / HUB_RECORD, lambda path: path.write_text(text, encoding="utf-8"))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of the record; ``licence`` (SPDX, lower case) is that of the weights."""
        return model_card(self.record, licence=kwargs.get("licence", "apache-2.0"))


def export_folder(name: str | Path, folder: Path, licence: str = "apache-2.0") -> Path:
    """Write weights into a folder as the Hub lays them out; a README.md that is there is kept.

    Raises InputError for unknown weights and a folder that holds other things.
    """
    network = HubNetwork.of(load_weights(name))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    others = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others and HUB_WEIGHTS not in others:
        raise InputError(f"{folder}: holds other files; name an empty or new folder")
    network.save_pretrained(folder, model_card_kwargs={"licence": licence})
    return folder


def push(
    name: str | Path,
    repository: str,
    *,
    licence: str = "apache-2.0",
    private: bool = False,
    branch: str | None = None,
    message: str = "Weights of RWKVFusion",
) -> str:
    """Push weights to ``owner/name`` on the Hub, made if it is not there; returns the commit's address.

    The account is that of `hf auth login` or $HF_TOKEN. Raises InputError that says why it failed.
    """
    network = HubNetwork.of(load_weights(name))
    try:
        return network.push_to_hub(
            repository,
            private=private,
            branch=branch,
            commit_message=message,
            model_card_kwargs={"licence": licence},
        )
    except _FAILURES as error:
        raise InputError(
            f"{repository}: cannot be pushed ({first_line(error)}); is `hf auth login` done, and may this "
            "account write there?"
        ) from error


def fetch(address: str) -> Path:
    """The folder of ``hf://owner/name`` or ``hf://owner/name@revision``, fetched unless it is there already.

    A revision is a branch, a tag, or a commit, which pins the weights. Raises InputError when there are none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(
            f"{address}: write weights on the Hub as {PREFIX}owner/name or {PREFIX}owner/name@revision"
        )
    repository, revision = match.groups()
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=[HUB_RECORD, HUB_WEIGHTS])
        )
    except _FAILURES as error:
        raise InputError(f"{address}: cannot be fetched ({first_line(error)})") from error
    for name in (HUB_RECORD, HUB_WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{address}: has no {name}; it does not hold weights of rwkvfusion")
    return folder
