"""A clean mask inside each box, without weights.

Object and surroundings are told apart by the statistics of grey level and colour, in the manner of GrabCut,
with a smooth prior in place of the graph cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import Image, SampleImages, luminance
from pipeline.records import Instances

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Slices = tuple[slice, slice]

STABILITY = 0.35
"""Shift of the log-odds under which a good mask hardly changes."""


class ClassicalSegmenter:
    """A mask and a predicted IoU for every box. Implements the Segmenter protocol."""

    identity = "classical-masks-1"

    def __call__(
        self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]
    ) -> list[tuple[Instances, ...]]:
        """Fill mask bool (k, H, W) and iou (k,) of every source's instances."""
        return [
            tuple(self._source(image, found) for image, found in zip(sample.images, sources, strict=True))
            for sample, sources in zip(samples, boxes, strict=True)
        ]

    def _source(self, image: Image, found: Instances) -> Instances:
        masks = np.zeros((len(found), *image.size), dtype=bool)
        quality = np.zeros(len(found), dtype=np.float32)
        features = _features(image.pixels) if len(found) else image.pixels
        for index, box in enumerate(found.box):
            window, mask, quality[index] = segment(features, box)
            masks[index][window] = mask
        return Instances(found.box, found.score, found.label, quality, masks)


def _features(pixels: FloatArray) -> FloatArray:
    """Luminance, and two colour differences when there is colour; (1 or 3, H, W)."""
    grey = luminance(pixels)
    if pixels.shape[0] != 3 or np.ptp(pixels, axis=0).max() < 0.02:
        return grey[None]
    return np.stack([grey, pixels[0] - grey, pixels[2] - grey])


def segment(features: FloatArray, box: FloatArray) -> tuple[Slices, BoolArray, float]:
    """Object inside one box (x0, y0, x1, y1): the window it lies in, its mask there, and a predicted IoU.

    The log-odds of object against surroundings are those of two Gaussians per class and feature, re-estimated
    three times, plus a prior that falls off towards the box's border; the smoothed zero contour is the mask.
    The predicted IoU is SAM's stability score: the IoU of the masks at log-odds above +d and above -d.
    """
    _, height, width = features.shape
    x0, y0 = int(np.floor(box[0])), int(np.floor(box[1]))
    x1, y1 = max(x0 + 1, int(np.ceil(box[2]))), max(y0 + 1, int(np.ceil(box[3])))
    margin = 3 + max(y1 - y0, x1 - x0) // 4
    window = (
        slice(max(0, y0 - margin), min(height, y1 + margin)),
        slice(max(0, x0 - margin), min(width, x1 + margin)),
    )
    stride = max(1, max(y1 - y0, x1 - x0) // 100)
    crop = features[(slice(None), *window)][:, ::stride, ::stride]
    rows = np.arange(window[0].start, window[0].stop, stride, dtype=np.float32)
    columns = np.arange(window[1].start, window[1].stop, stride, dtype=np.float32)
    # Distance from the box's centre in units of its half size: 1 on the border.
    v = np.abs(rows + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    u = np.abs(columns + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    distance = np.maximum(v[:, None], u[None, :])
    odds = _log_odds(crop, distance)
    if stride > 1:
        odds = _stretch(odds, window, stride)
        distance = _stretch(distance, window, stride)
    inside = distance <= 1.02 + 2.0 / min(y1 - y0, x1 - x0)
    mask = _one_piece((odds > 0) & inside)
    if not mask.any():
        mask = distance <= 1
        return window, mask, 0.0
    near = ndimage.binary_dilation(mask, iterations=2) & inside
    wide, tight = int((near & (odds > -STABILITY)).sum()), int((mask & (odds > STABILITY)).sum())
    contour = mask & ~ndimage.binary_erosion(mask, border_value=1)
    cut = float((contour & ~ndimage.binary_erosion(inside, border_value=1)).sum()) / max(
        int(contour.sum()), 1
    )
    return window, mask, float(tight / max(wide, 1) * min(1.0, 1.25 - cut))


def _log_odds(crop: FloatArray, distance: FloatArray) -> FloatArray:
    inside, around = distance <= 1, distance > 1.08
    if not around.any():
        around = distance > np.quantile(distance, 0.8)
    grey = crop[0]
    # Start: pixels of the box's inner part that differ from the surroundings to the side most of them do.
    reference = float(np.median(grey[around]))
    difference = grey - reference
    core = difference[distance <= 0.6] if (distance <= 0.6).any() else difference[inside]
    side = 1.0 if np.abs(core.max()) >= np.abs(core.min()) else -1.0
    cut = 0.4 * side * np.quantile(side * core, 0.9)
    start = inside & (side * difference > side * cut)
    if start.sum() < 4:
        start = distance <= 0.5
    prior = np.where(distance <= 1, 0.6 * (1 - distance**4), -6.0 * (distance - 1)).astype(np.float32)
    sigma = 0.7 if min(grey.shape) < 40 else 1.2
    odds = np.zeros_like(grey)
    for _ in range(3):
        object_ = _log_likelihood(crop, start)
        surroundings = _log_likelihood(crop, around | (inside & ~start))
        odds = ndimage.gaussian_filter(np.clip(object_ - surroundings, -4, 4) + prior, sigma)
        update = (odds > 0) & inside
        if update.sum() < 4:
            break
        start = update
    return odds


def _log_likelihood(crop: FloatArray, chosen: BoolArray) -> FloatArray:
    """Log-likelihood under a mixture of two Gaussians per class, split at the class's mean grey level."""
    grey = crop[0]
    middle = float(grey[chosen].mean())
    best = np.full(grey.shape, -np.inf, dtype=np.float32)
    total = float(chosen.sum())
    for half in (chosen & (grey <= middle), chosen & (grey > middle)):
        count = float(half.sum())
        if count < 3:
            continue
        value = np.full(grey.shape, np.log(count / total), dtype=np.float32)
        for number, band in enumerate(crop):
            mean, deviation = float(band[half].mean()), max(float(band[half].std()), 0.02)
            weight = 1.0 if number == 0 else 0.5
            value -= weight * (0.5 * ((band - mean) / deviation) ** 2 + np.log(deviation))
        best = np.maximum(best, value)
    return best if np.isfinite(best).all() else np.zeros_like(grey)


def _stretch(values: FloatArray, window: Slices, stride: int) -> FloatArray:
    """Bilinear interpolation of a map sampled every ``stride`` pixels back to the window's size."""
    rows = np.minimum(np.arange(window[0].stop - window[0].start) / stride, values.shape[0] - 1)
    columns = np.minimum(np.arange(window[1].stop - window[1].start) / stride, values.shape[1] - 1)
    y, x = rows.astype(int), columns.astype(int)
    y1, x1 = np.minimum(y + 1, values.shape[0] - 1), np.minimum(x + 1, values.shape[1] - 1)
    fy, fx = (rows - y)[:, None].astype(np.float32), (columns - x)[None].astype(np.float32)
    top = values[y][:, x] * (1 - fx) + values[y][:, x1] * fx
    low = values[y1][:, x] * (1 - fx) + values[y1][:, x1] * fx
    return (top * (1 - fy) + low * fy).astype(np.float32)


def _one_piece(mask: BoolArray) -> BoolArray:
    """The largest piece and those at least a quarter of it, without holes."""
    labelled, count = ndimage.label(ndimage.binary_opening(mask) if mask.sum() > 60 else mask)
    if count > 1:
        areas = np.bincount(labelled.ravel())
        areas[0] = 0
        kept = np.isin(labelled, np.flatnonzero(areas >= 0.25 * areas.max()))
        return np.asarray(ndimage.binary_fill_holes(kept))
    return np.asarray(ndimage.binary_fill_holes(labelled > 0))
