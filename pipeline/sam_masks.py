"""Masks in boxes by Segment Anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.checkpoints import find_checkpoint
from pipeline.config import MasksConfig
from pipeline.images import SampleImages
from pipeline.model_input import as_rgb8
from pipeline.records import Instances
from pipeline.resident import chosen_device, inference, resident
from pipeline.weights import checkpoint_identity

AT_ONCE = {"cuda": 8, "cpu": 1}
"""Images that the encoder sees in one call: its attention over 4096 tokens takes 0.8 GB each in ViT-B."""


def _load(folder: Path) -> torch.nn.Module:
    (name,) = find_checkpoint(folder.name).pinned
    return build(torch.load(folder / name, map_location="cpu", weights_only=True))


def build(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A SAM with these parameters, its size read from their shapes.

    Raises RuntimeError or KeyError if they are no SAM's.
    """
    from segment_anything.build_sam import _build_sam

    width = state["image_encoder.patch_embed.proj.weight"].shape[0]
    depth = sum(name.endswith("attn.rel_pos_h") for name in state)
    positions = [state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape for block in range(depth)]
    # A block that looks at the whole image, not at windows, has a position for every distance in it.
    whole = 2 * state["image_encoder.pos_embed"].shape[1] - 1
    sam = _build_sam(
        encoder_embed_dim=width,
        encoder_depth=depth,
        encoder_num_heads=width // positions[0][1],
        encoder_global_attn_indexes=[block for block, shape in enumerate(positions) if shape[0] == whole],
    )
    sam.load_state_dict(state)
    return sam


@dataclass(frozen=True)
class SamSegmenter:
    """The best of three masks for every box. Implements the Segmenter protocol."""

    config: MasksConfig

    @property
    def identity(self) -> str:
        """Repository, revision and checksum."""
        return checkpoint_identity(self.config.checkpoint)

    def __call__(
        self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]
    ) -> list[tuple[Instances, ...]]:
        """Fill mask bool (k, H, W) and predicted IoU (k,) in [0, 1] of every source's instances."""
        images = [image for sample in samples for image in sample.images]
        found = [instances for sources in boxes for instances in sources]
        filled = [_empty(instances, image.size) for image, instances in zip(images, found, strict=True)]
        busy = [index for index, instances in enumerate(found) if len(instances)]
        sam: Any = resident(_load, self.config.checkpoint) if busy else None
        step = AT_ONCE.get(chosen_device().type, 1)
        for start in range(0, len(busy), step):
            part = busy[start : start + step]
            pictures = [as_rgb8(images[index]) for index in part]
            results = segment(sam, pictures, [found[index].box for index in part])
            for index, (masks, quality) in zip(part, results, strict=True):
                one = found[index]
                filled[index] = Instances(one.box, one.score, one.label, quality, masks)
        remaining = iter(filled)
        return [tuple(next(remaining) for _ in sample.images) for sample in samples]


def _empty(instances: Instances, size: tuple[int, int]) -> Instances:
    return Instances(
        instances.box, instances.score, instances.label, np.zeros(0, np.float32), np.zeros((0, *size), bool)
    )


def segment(
    sam: Any, pictures: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks bool (k, H, W) and predicted IoU float32 (k,) for xyxy boxes (k, 4) in pictures of one size.

    The encoder sees all pictures at once, the decoder all boxes of a picture at once. Of the three masks that
    it proposes for a box the one with the highest predicted IoU is kept, and that IoU, clipped to [0, 1].
    """
    from segment_anything.utils.transforms import ResizeLongestSide

    transform = ResizeLongestSide(sam.image_encoder.img_size)
    size = pictures[0].shape[:2]
    prepared = np.stack([transform.apply_image(picture) for picture in pictures])
    found = []
    with inference(sam.device):
        batch = sam.preprocess(torch.from_numpy(prepared).to(sam.device).permute(0, 3, 1, 2))
        embeddings = sam.image_encoder(batch)
        position = sam.prompt_encoder.get_dense_pe()
        for embedding, of_picture in zip(embeddings, boxes, strict=True):
            corners = torch.from_numpy(transform.apply_boxes(of_picture, size)).float().to(sam.device)
            sparse, dense = sam.prompt_encoder(points=None, boxes=corners, masks=None)
            candidates, quality = sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=position,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            best, index = quality.float().max(dim=1)
            chosen = candidates.float()[torch.arange(len(index)), index][:, None]
            masks = sam.postprocess_masks(chosen, prepared.shape[1:3], size)[:, 0] > sam.mask_threshold
            found.append((masks.cpu().numpy(), best.clamp(0, 1).cpu().numpy()))
    return found
