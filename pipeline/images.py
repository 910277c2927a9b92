"""Read and write images: any supported file to float32 C x H x W in [0, 1] and back."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.manifest import IMAGE_SUFFIXES, SHARPENING_TASKS, Sample, file_of

FloatArray = NDArray[np.float32]

# ITU-R BT.601 luma weights, the ones JPEG, OpenCV and MATLAB's rgb2gray use.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels as float32 (C, H, W) in [0, 1]; ``bits`` of the file: 8, 11, 16, …, or 32 for floating point."""

    pixels: FloatArray
    bits: int
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True, slots=True)
class SampleImages:
    """A sample with its decoded sources, all on the grid (H, W) of the first one."""

    sample: Sample
    images: tuple[Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.images[0].size


def read_image(path: Path, bits: int | None = None) -> Image:
    """Read PNG, JPEG, BMP, TIFF, NPY or a variable of a MATLAB file (``file.mat#KEY``).

    Integers are divided by 2**bits - 1, where ``bits`` defaults to the file's own depth; floating point must
    already lie in [0, 1] unless ``bits`` says the peak. Palettes are expanded, alpha is dropped, EXIF
    orientation is applied. Arrays are H x W or H x W x C. Raises InputError naming the file and what to do.
    """
    file = file_of(path)
    suffix = file.suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, ".mat"):
        raise InputError(
            f"{path}: '{suffix}' is not a supported image type ({', '.join((*IMAGE_SUFFIXES, '.mat'))})"
        )
    if not file.is_file():
        raise InputError(f"{path}: no such image file; check the path or the manifest")
    try:
        array = _decode(path, file, suffix)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        SyntaxError,
        UnidentifiedImageError,
        PillowImage.DecompressionBombError,
        tifffile.TiffFileError,
    ) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); replace the file") from error
    return _normalised(array, bits, path)


def _decode(path: Path, file: Path, suffix: str) -> NDArray[np.generic]:
    if suffix == ".npy":
        array: NDArray[np.generic] = np.load(file, allow_pickle=False)
        return array
    if suffix == ".mat":
        return _read_matlab(path, file)
    if suffix in (".tif", ".tiff"):
        array = tifffile.imread(file)
        if array.size == 0:
            raise ValueError("the file holds no picture")
        # Band-sequential TIFFs come as (C, H, W): the band axis is the short one.
        return (
            np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] < min(array.shape[1:]) else array
        )
    with PillowImage.open(file) as opened:
        # Cameras put a preview beside the picture into one file (MPO); there the first one is meant.
        if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
            raise InputError(f"{path}: is an animation; save the one frame to fuse as a file of its own")
        opened.load()
        image: PillowImage.Image = opened
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode in ("LA", "La", "RGBA", "RGBa"):
            image = image.convert("L" if image.mode.startswith("L") else "RGB")
        elif image.mode not in ("L", "RGB", "I;16", "I;16B", "I", "F"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        array = np.asarray(ImageOps.exif_transpose(image))
    # Pillow opens 16-bit grey PNGs as 32-bit integers in some versions.
    return (
        array.astype(np.uint16)
        if array.dtype == np.int32 and 0 <= array.min() <= array.max() < 65536
        else array
    )


def _read_matlab(path: Path, file: Path) -> NDArray[np.generic]:
    from scipy.io import loadmat  # costs 0.2 s and only a few data sets need it
    from scipy.io.matlab import MatReadError

    key = path.name.partition("#")[2]
    try:
        variables = loadmat(file)
    except (MatReadError, NotImplementedError) as error:
        raise InputError(f"{file}: cannot be read as a MATLAB v5 file ({error}); save it with -v7") from error
    names = [name for name in variables if not name.startswith("__")]
    if key not in names:
        raise InputError(f"{path}: the file has no variable '{key}'; it holds {', '.join(names)}")
    return np.asarray(variables[key])


def _normalised(array: NDArray[np.generic], bits: int | None, path: Path) -> Image:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            f"{path}: an image has shape H x W or H x W x C, this one has {array.shape}; convert it"
        )
    if array.dtype == np.bool_:
        array, bits = array.astype(np.uint8), 1
    if np.issubdtype(array.dtype, np.unsignedinteger) or np.issubdtype(array.dtype, np.signedinteger):
        depth = bits or 8 * array.dtype.itemsize
        pixels = array.astype(np.float32) / np.float32(2**depth - 1)
        if pixels.min() < 0 or pixels.max() > 1:
            raise InputError(
                f"{path}: values {array.min()} … {array.max()} do not fit {depth} bits; correct `bits`"
            )
    elif np.issubdtype(array.dtype, np.floating):
        depth = 32
        pixels = array.astype(np.float32) / np.float32(2**bits - 1 if bits and bits < 32 else 1)
        if not np.isfinite(pixels).all():
            raise InputError(f"{path}: the image holds NaN or infinite values; replace them first")
        if pixels.min() < -1e-6 or pixels.max() > 1 + 1e-6:
            raise InputError(
                f"{path}: floating-point values {pixels.min():g} … {pixels.max():g} lie outside [0, 1]; "
                "rescale the image or set `bits` in the manifest (11 for 0 … 2047)"
            )
    else:
        raise InputError(
            f"{path}: values of type {array.dtype} are not supported; save the image as 8 or 16 bits"
        )
    return Image(np.ascontiguousarray(pixels.clip(0, 1).transpose(2, 0, 1)), depth, path)


def write_image(path: Path, pixels: FloatArray, bits: int = 8) -> None:
    """Write float (C, H, W) in [0, 1] by suffix, atomically.

    PNG takes 1 or 3 bands at 8 bits and 1 band at 16; JPEG and BMP 8 bits; TIFF and NPY any number of bands
    at any depth (``bits`` 9 to 16 are stored in uint16 unscaled, 32 as float32). What a type cannot hold
    raises InputError.
    """
    bands = pixels.shape[0]
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: cannot write '{suffix}'; choose one of {', '.join(IMAGE_SUFFIXES)}")
    if suffix not in (".tif", ".tiff", ".npy") and (bands not in (1, 3) or bits > 16):
        raise InputError(
            f"{path}: {suffix} cannot hold {bands} bands at {bits} bits; write a .tif or .npy file"
        )
    if suffix in (".jpg", ".jpeg", ".bmp") or (suffix == ".png" and bands == 3):
        bits = 8  # Pillow writes no 16-bit colour PNG, and JPEG and BMP have no deeper form.
    array = quantise(pixels, bits)
    array = array[0] if bands == 1 else array.transpose(1, 2, 0)
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, array)
    elif suffix in (".tif", ".tiff"):
        tifffile.imwrite(
            buffer, array, photometric="rgb" if bands == 3 else "minisblack", compression="deflate"
        )
    else:
        kind = {".png": "PNG", ".bmp": "BMP"}.get(suffix, "JPEG")
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
        PillowImage.fromarray(np.ascontiguousarray(array)).save(buffer, kind, **options)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def quantise(pixels: FloatArray, bits: int) -> NDArray[np.generic]:
    """Round [0, 1] to integers of ``bits`` bits (uint8 up to 8, uint16 up to 16); 32 keeps float32."""
    if bits > 16:
        return pixels.astype(np.float32)
    levels = np.rint(pixels.clip(0, 1).astype(np.float64) * (2**bits - 1))
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then rename; a failure leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not tell, and nobody knows the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_sources(sample: Sample) -> list[Image]:
    """Read the sources of a sample in role order and check that their sizes agree.

    Outside sharpening they are grey or RGB. All must have the first one's (H, W); in sharpening tasks a later
    source may be smaller by one integer ratio. Raises InputError naming the sample.
    """
    images = [read_image(source.path, sample.bits) for source in sample.sources]
    for source, image in zip(sample.sources, images, strict=True):
        bands = image.pixels.shape[0]
        if sample.task not in SHARPENING_TASKS and bands not in (1, 3):
            raise InputError(
                f"sample '{sample.id}': the {source.role} image has {bands} bands ({source.path}); "
                f"{sample.task} takes grey or RGB images, convert it"
            )
    height, width = images[0].size
    for source, image in zip(sample.sources[1:], images[1:], strict=True):
        h, w = image.size
        if (h, w) == (height, width):
            continue
        if sample.task in SHARPENING_TASKS and height % h == 0 and height // h * w == width:
            continue
        first = sample.sources[0]
        remedy = (
            f"the {source.role} image must be smaller by a whole ratio"
            if sample.task in SHARPENING_TASKS
            else "register and resize them first (registration is outside this tool)"
        )
        raise InputError(
            f"sample '{sample.id}': {first.role} is {height}x{width} but {source.role} is {h}x{w} "
            f"({source.path}); {remedy}"
        )
    return images


def read_sample(sample: Sample) -> SampleImages:
    """Read a sample with every source on the first one's grid (smaller sources are enlarged bicubically)."""
    images = read_sources(sample)
    size = images[0].size
    return SampleImages(sample, tuple(Image(enlarge(i.pixels, size), i.bits, i.path) for i in images))


def enlarge(pixels: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize (C, h, w) to (C, H, W) with Pillow's bicubic interpolation, clipped to [0, 1]."""
    if pixels.shape[1:] == size:
        return pixels
    height, width = size
    bands = [
        np.asarray(PillowImage.fromarray(band).resize((width, height), PillowImage.Resampling.BICUBIC))
        for band in pixels
    ]
    return np.stack(bands).clip(0, 1)


def luminance(pixels: FloatArray) -> FloatArray:
    """(C, H, W) -> (H, W): BT.601 luma of RGB, the mean of any other number of bands."""
    if pixels.shape[0] == 3:
        return np.tensordot(LUMA, pixels, axes=1).astype(np.float32)
    return pixels.mean(axis=0, dtype=np.float32)


def display(pixels: FloatArray) -> NDArray[np.uint8]:
    """(C, H, W) -> uint8 (H, W, 3) to look at.

    Grey and RGB are shown as they are. Other images show three bands, each stretched between its 1st and 99th
    percentile: red, green and blue of four bands (B, G, R, near infrared) or eight (WorldView-2 and -3), else
    three spread over the spectrum.
    """
    bands = pixels.shape[0]
    if bands == 1:
        pixels = np.repeat(pixels, 3, axis=0)
    elif bands != 3:
        spread = [bands * 3 // 4, bands // 2, bands // 6]
        chosen = {4: [2, 1, 0], 8: [4, 2, 1]}.get(bands, spread)
        pixels = pixels[chosen]
        low = np.percentile(pixels, 1, axis=(1, 2), keepdims=True)
        high = np.percentile(pixels, 99, axis=(1, 2), keepdims=True)
        pixels = ((pixels - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    return np.ascontiguousarray(quantise(pixels, 8).astype(np.uint8).transpose(1, 2, 0))
