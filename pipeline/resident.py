"""Where foundation models run, in which precision, and that each is loaded once per process and device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from pipeline.errors import SetupError, first_line
from pipeline.weights import locate

DEVICE_VARIABLE = "RWKVFUSION_DEVICE"

UNUSABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    UnpicklingError,
    SafetensorError,
)
"""What libraries raise for files that are damaged or another model's."""

T = TypeVar("T")
_loaded: dict[tuple[Any, Path, str], Any] = {}
_lock = threading.Lock()


def chosen_device() -> torch.device:
    """The device named by `$RWKVFUSION_DEVICE`: auto (a GPU if there is one), cpu, cuda, cuda:1, …

    Raises SetupError when there is no such device.
    """
    name = os.environ.get(DEVICE_VARIABLE) or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SetupError(f"--device '{name}': no such device; choose auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SetupError(
            f"--device '{name}': there are {torch.cuda.device_count()} CUDA devices here; choose auto or cpu"
        )
    return device


def resident(load: Callable[[Path], T], checkpoint: str) -> T:
    """What ``load`` makes of a checkpoint's folder, from memory after the first call on this device.

    ``load`` returns a network, or an object whose ``model`` is one; it is moved to the chosen device and set
    to evaluation. Raises SetupError when files are missing or do not hold the architecture.
    """
    folder, device = locate(checkpoint), chosen_device()
    key = (load, folder, str(device))
    with _lock:
        if key not in _loaded:
            try:
                made = load(folder)
            except UNUSABLE as error:
                raise SetupError(
                    f"{folder}: cannot be loaded as {checkpoint} ({first_line(error)}); run "
                    f"`python -m pipeline weights verify {checkpoint}`"
                ) from error
            network: Any = getattr(made, "model", made)
            network.to(device).eval().requires_grad_(False)
            _loaded[key] = made
        return _loaded[key]


@dataclass(frozen=True)
class Pretrained:
    """A network of transformers, and its tokenizer or processor."""

    model: Any
    processor: Any


def from_pretrained(folder: Path, model: Any, processor: Any) -> Pretrained:
    """What two classes of transformers make of a checkpoint's folder, in float32 and without network.

    Raises ValueError when the files lack parameters, which transformers would draw at random.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would say at length what is said below
    network, found = model.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    lacking = {name for name, _ in network.named_parameters()} & set(found["missing_keys"])
    if lacking:
        raise ValueError(f"{len(lacking)} parameters are missing, such as {min(lacking)}")
    return Pretrained(network, processor.from_pretrained(folder, local_files_only=True))


@contextmanager
def inference(device: torch.device, *, full: bool = False) -> Iterator[None]:
    """No gradients; on a GPU matrix products in bfloat16 (float16 where it lacks it), unless ``full``."""
    half = device.type == "cuda" and not full
    dtype = torch.bfloat16 if not half or torch.cuda.is_bf16_supported() else torch.float16
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=half):
        yield
