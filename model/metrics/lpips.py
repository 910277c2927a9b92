"""Learned perceptual distance: LPIPS, with VGG16 weights from a file or the hub."""

from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.metrics.planes import on_planes
from pipeline.errors import InputError

FILE = "vgg16-397923af.pth"  # torchvision's ImageNet weights; the digits begin the file's SHA-256
ADDRESS = f"https://download.pytorch.org/models/{FILE}"
HUB = "hub"


def backbone_file(weights: Path | str | None = None) -> Path:
    """The file with VGG16's weights: the one named, or torchvision's in torch's cache of downloads.

    `weights`: a .pth or .safetensors file, or "hub" to download torchvision's into that cache first. Raises
    InputError when there is none, saying where they may come from.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if weights == HUB and not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(ADDRESS, str(cached), hash_prefix="397923af", progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"LPIPS: cannot download {ADDRESS} ({error}); name a copy of it with --lpips"
            ) from None
    file = cached if weights in (None, HUB) else Path(str(weights))
    if not file.is_file():
        # The cache lies in somebody's home, which has no place in a report that others read.
        place = f"in torch's cache of downloads ({FILE})" if file == cached else f"at {file}"
        raise InputError(
            f"no VGG16 weights {place}: name a copy of torchvision's {FILE} with --lpips, "
            f"or '{HUB}' to download it"
        )
    return file


@lru_cache(maxsize=1)
def perceptual_network(file: Path) -> nn.Module:
    """LPIPS of torchmetrics (net "vgg", heads of version 0.1) on the VGG16 of this file, in evaluation mode.

    Raises InputError when the file holds other weights.
    """
    from torchmetrics.functional.image.lpips import _LPIPS  # imports torchvision, which takes seconds

    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch and safetensors raise many kinds for a file that is none of theirs
        raise InputError(f"LPIPS: {file} is no file of weights ({type(error).__name__})") from None
    # the public class of torchmetrics always downloads the backbone; this is the module inside it
    network = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    wanted = network.net.state_dict()
    # slice2.5.weight of the network is features.5.weight of VGG16
    found = {key: state.get("features." + key.split(".", 1)[1]) for key in wanted}
    if any(value is None or value.shape != wanted[key].shape for key, value in found.items()):
        raise InputError(f"LPIPS: {file} holds no VGG16: use torchvision's {FILE}")
    network.net.load_state_dict(found)
    return network.eval()


@on_planes(min_side=16, dimensions=3)
def _distance_sum(first: Tensor, second: Tensor, fused: Tensor, *, network: nn.Module) -> Tensor:
    batch = fused.shape[:-3]
    first, second, fused = (
        (image.expand(*batch, 3, -1, -1).reshape(-1, 3, *image.shape[-2:]) / 255).clamp(0, 1).float()
        for image in (first, second, fused)
    )
    network = network.to(fused.device)
    distances = [network(source, fused, normalize=True) for source in (first, second)]
    return (distances[0] + distances[1]).double().reshape(batch)


def perceptual_distance(first: Any, second: Any, fused: Any, *, weights: Path | str | None = None) -> Any:
    """LPIPS: LPIPS(first, fused) + LPIPS(second, fused).

    Definition: Zhang et al. 2018, VGG16, version 0.1: distances of unit-normalised features of five layers,
    weighted by learned heads, averaged. Reference: the authors' script, torchmetrics with net "vgg" and
    normalize=True, in float32. Range 0..about 2, LOWER is better. Input: colour (3, H, W) or luminance (1, H,
    W) on 0..255, a single channel is repeated. Identical images: 0. Constant images are defined. A side below
    16 pixels or NaN pixels: NaN. `weights` as in `backbone_file`; without weights InputError, never a value.
    """
    network = perceptual_network(backbone_file(weights))
    return _distance_sum(first, second, fused, network=network)
