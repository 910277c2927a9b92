"""Fuse images larger than memory: windows read from the sources, tiles written into a file one by one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.combine import Colour
from model.inference import Fuser, window_of
from model.pieces import Pieces, in_pieces
from model.sample import Prepared
from model.tiled import Patches, TiledFusion
from model.tiling import Tiling, plan
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

    ``report(done, of)`` is told how many pairs of tiles have been gone through, over all passes. Returns the
    tiles. Raises InputError for what cannot be read or written in pieces, and then leaves nothing behind.
    """
    result, facts = prepared.result, prepared.facts
    if not in_pieces(result.path):
        raise InputError(
            f"{result.path}: an image of {result.shape[1]}x{result.shape[2]} is beyond --memory and written "
            "in pieces, which only .tif and .zarr can be; give -o such a name, or more --memory"
        )
    size = facts[0].size
    shape = fuser.shape
    tiling = plan(size, fuser.pixels_within(prepared.memory), shape.align, shape.reach)
    patches = Patches(
        size,
        [_reader(image, prepared) for image in facts],
        [size[0] // image.size[0] for image in facts],
        [image.bands for image in facts],
    )
    tiles = TiledFusion(patches, fuser, prepared.text, prepared.masks, colour, tiling, shape)
    pieces = Pieces(result.path, result.shape, result.bits, _facts(prepared, fuser, colour, tiling))
    with pieces.alone():
        done, tiles.whole.facts = pieces.resume()
        try:
            _learn(tiles, pieces, report)
            known = len(tiles.whole.facts)
            for number, pair in enumerate(tiling.pairs[done:], start=done):
                for rows, columns, pixels in tiles.fuse(pair):
                    pieces.write(rows, columns, pixels)
                pieces.count(number + 1, known)
                report(known * len(tiling.pairs) + number + 1, (known + 1) * len(tiling.pairs))
        except InputError:
            pieces.discard()
            raise
        pieces.finish(result.georeference)
    return tiling


def _learn(tiles: TiledFusion, pieces: Pieces, report: Callable[[int, int], object]) -> None:
    """Learn what is not known yet of the whole image, one fact a pass over it."""
    pairs, facts = len(tiles.tiling.pairs), tiles.whole.facts
    while len(facts) < tiles.passes - 1:
        before = len(facts) * pairs
        tiles.learn(lambda done, before=before: report(before + done, tiles.passes * pairs))  # type: ignore[misc]
        pieces.learned(len(facts) - 1, facts[-1])


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
    return window_of(read_image(image.path, bits).pixels)


def _facts(prepared: Prepared, fuser: Fuser, colour: Colour, tiling: Tiling) -> dict[str, Any]:
    """All that decides the values of the result, so that no run goes on with another's."""
    files = [file_of(image.path) for image in prepared.facts]
    own = [prepared.job.masks] if prepared.job.masks else []
    status = [(str(file.resolve()), *_stamp(file)) for file in [*files, *own]]
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


def _stamp(file: Path) -> tuple[int, int]:
    """Bytes and time of the last change, of a folder all that is in it."""
    inside = [path.stat() for path in file.rglob("*")] if file.is_dir() else [file.stat()]
    return sum(status.st_size for status in inside), max(status.st_mtime_ns for status in inside)
