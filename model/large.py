"""Fuse images larger than memory: windows read from the sources, strips written to a tiled BigTIFF."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from typing import Any

from model.inference import Colour, Fuser, fuse_window, learn_whole
from model.pieces import Pieces
from model.sample import Prepared
from model.tiling import Tiling, plan, strips
from model.whole import Whole
from pipeline.errors import InputError
from pipeline.images import FloatArray, ImageFacts, read_image, read_window
from pipeline.manifest import file_of


def fuse_pieces(
    prepared: Prepared,
    fuser: Fuser,
    colour: Colour,
    report: Callable[[int, int], object],
) -> Tiling:
    """Fuse a sample in tiles from files to file; goes on where an interrupted run stopped.

    ``report(done, of)`` is told the number of tiles after each. Returns the tiles. Raises InputError for what
    cannot be read or written in pieces, and then leaves nothing behind.
    """
    result, facts = prepared.result, prepared.facts
    if result.path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            f"{result.path}: an image of {result.shape[1]}x{result.shape[2]} is beyond --memory and written "
            "in pieces, which only .tif can be; give -o such a name, or more --memory"
        )
    height, width = facts[0].size
    ratios = [height // image.size[0] for image in facts]
    tiling = plan((height, width), fuser.pixels_within(prepared.memory), max(ratios))
    h, w = tiling.tile
    read = [_reader(image, prepared) for image in facts]
    pieces = Pieces(result.path, result.shape, result.bits, _facts(prepared, fuser, colour, tiling))
    done, carry = pieces.resume()
    count = done * len(tiling.columns)
    report(count, len(tiling))

    def fused(top: int, left: int, whole: Whole) -> FloatArray:
        windows = [
            window(top // r, left // r, h // r, w // r) for window, r in zip(read, ratios, strict=True)
        ]
        masks = None if prepared.masks is None else prepared.masks(top, left, h, w)
        return fuse_window(windows, fuser, prepared.text, masks, colour, whole)

    def counted(top: int, left: int) -> FloatArray:
        nonlocal count
        pixels = fused(top, left, whole)
        count += 1
        report(count, len(tiling))
        return pixels

    try:
        whole = learn_whole(tiling, fused)
        for strip in strips(tiling, counted, done, carry):
            pieces.write(strip)
    except InputError:
        shutil.rmtree(pieces.folder, ignore_errors=True)
        raise
    pieces.finish(result.georeference)
    return tiling


def _reader(image: ImageFacts, prepared: Prepared) -> Callable[[int, int, int, int], FloatArray]:
    """Windows of a source; one that can only be decoded at once is kept, where memory allows."""
    bits = prepared.job.sample.bits
    if image.streams:
        return lambda top, left, height, width: read_window(image.path, top, left, height, width, bits).pixels
    size = 4 * image.bands * image.size[0] * image.size[1]
    if prepared.memory is not None and size > prepared.memory:
        raise InputError(
            f"{image.path}: is {image.size[0]}x{image.size[1]} and can only be read at once, which takes "
            f"{size / 2**30:.1f} GiB; save it as TIFF or give more --memory"
        )
    pixels = read_image(image.path, bits).pixels
    return lambda top, left, height, width: pixels[:, top : top + height, left : left + width]


def _facts(prepared: Prepared, fuser: Fuser, colour: Colour, tiling: Tiling) -> dict[str, Any]:
    """All that decides the values of the result, so that no run goes on with another's."""
    files = [file_of(image.path) for image in prepared.facts]
    own = [prepared.job.masks] if prepared.job.masks else []
    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in [*files, *own]]
    text = b"" if prepared.text is None else prepared.text.tobytes()
    return {
        "files": status,
        "weights": fuser.record["sha256"],
        "dtype": str(fuser.dtype),
        "colour": colour,
        "tiling": dataclasses.asdict(tiling),
        "text": hashlib.sha256(text).hexdigest(),
        "guidance": prepared.note,
    }
