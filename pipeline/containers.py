"""Images in files that hold more than one: MATLAB (v5, v7.3) and HDF5; ENVI cubes with their header."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.manifest import companion
from pipeline.rasters import READING_ERRORS, Raster, Values, array_raster, depth_of

# The keys that are read here are the same in capitals.
warnings.filterwarnings("ignore", "Parameters with non-lowercase names", UserWarning)

_MATLAB_TYPES = {"double": "float64", "single": "float32", "logical": "bool"}
_NUMBERS = re.compile("float(32|64)|bool|u?int(8|16|32|64)")


def open_variable(path: Path, file: Path, key: str) -> AbstractContextManager[Raster]:
    """Open one variable of a MATLAB or HDF5 file: ``NAME``, ``group/NAME``, or ``NAME[12]`` of a stack.

    MATLAB arrays are H x W or H x W x C, stacks have the sample first: N x H x W x C. HDF5 stacks are
    N x C x H x W or N x H x W, as PyTorch's data sets are; a single HDF5 image is H x W, H x W x C, or
    C x H x W when its first axis is the shortest. The name may be left out when there is only one.
    """
    name, index = _name_and_sample(path, key)
    if h5py.is_hdf5(file):
        return _open_hdf5(path, file, name, index)
    if file.suffix.lower() != ".mat":
        raise ValueError("it is no HDF5 file")
    return _open_matlab(path, file, name, index)


def list_variables(file: Path) -> list[tuple[str, int | None]]:
    """Names of the images in a MATLAB or HDF5 file, each with the number of samples when it is a stack.

    Raises InputError when the file cannot be opened.
    """
    try:
        if not h5py.is_hdf5(file):
            return [(name, shape[0] if len(shape) == 4 else None) for name, shape, _ in _variables(file)]
        found: list[tuple[str, int | None]] = []
        with h5py.File(file, "r") as opened:

            def note(name: str, node: h5py.Group | h5py.Dataset) -> None:
                if _is_image(node):
                    samples = node.shape[-1 if "MATLAB_class" in node.attrs else 0]
                    found.append((name, samples if node.ndim == 4 else None))

            opened.visititems(note)
        return found
    except READING_ERRORS as error:
        said = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read ({said}); replace or remove the file") from error


def _variables(file: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and numpy type of the arrays of numbers in a MATLAB file before 7.3."""
    from scipy.io import whosmat  # costs 0.2 s and only a few data sets need it
    from scipy.io.matlab import MatReadError

    try:
        listed = [(name, shape, _MATLAB_TYPES.get(kind, kind)) for name, shape, kind in whosmat(file)]
    except (MatReadError, NotImplementedError) as error:
        raise ValueError(f"not a MATLAB file of version 4, 5, 6, 7 or 7.3: {error}") from error
    return [(name, shape, kind) for name, shape, kind in listed if _NUMBERS.fullmatch(kind)]


def _name_and_sample(path: Path, key: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", key)
    if match is None or "[" in match[1]:
        raise InputError(f"{path}: '{key}' is not NAME or NAME[NUMBER]; correct what follows the '#'")
    return match[1].strip("/"), None if match[2] is None else int(match[2])


def _choose(path: Path, name: str, names: list[str]) -> str:
    """The name that is meant: the only one when none is given."""
    if name in names:
        return name
    if not name and len(names) == 1:
        return names[0]
    if not name:
        raise InputError(f"{path}: say which variable, as in '{path.name}#{names[0] if names else 'NAME'}'; "
                         f"it holds {', '.join(names) or 'no arrays'}")  # fmt: skip
    raise InputError(
        f"{path}: the file has no array of numbers '{name}'; it holds {', '.join(names) or 'none'}; "
        "correct what follows the '#'"
    )


def _axes(path: Path, axes: dict[int, str], shape: tuple[int, ...], index: int | None, wanted: str) -> str:
    if len(shape) not in axes:
        what = "an image of a stack" if index is not None else "an image"
        hint = ""
        if index is None and len(shape) == 4:
            hint = f"; name one sample of the stack, as in '{path.name}[0]'"
        raise InputError(f"{path}: {what} has shape {wanted}, this one has {shape}{hint or '; convert it'}")
    return axes[len(shape)]


@contextmanager
def _open_matlab(path: Path, file: Path, name: str, index: int | None) -> Iterator[Raster]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    found = {variable: (shape, kind) for variable, shape, kind in _variables(file)}
    name = _choose(path, name, list(found))
    shape, kind = found[name]
    axes = _axes(
        path,
        {2: "HW", 3: "HWC"} if index is None else {3: "NHW", 4: "NHWC"},
        shape,
        index,
        "H x W or H x W x C" if index is None else "N x H x W or N x H x W x C",
    )
    _check_index(path, index, shape[0])

    def read(top: int, left: int, height: int, width: int) -> Values:
        try:
            array = loadmat(file, variable_names=[name])[name]
        except MatReadError as error:
            raise ValueError(str(error)) from error
        if array.dtype.kind == "c":  # which the header does not say
            raise ValueError("its numbers are complex")
        return array_raster(array, axes, sample=index).read(top, left, height, width)

    described = array_raster(np.broadcast_to(np.zeros((), kind), shape), axes, sample=index, streams=False)
    yield replace(described, read=read)


@contextmanager
def _open_hdf5(path: Path, file: Path, name: str, index: int | None) -> Iterator[Raster]:
    with h5py.File(file, "r") as opened:
        names: list[str] = []
        opened.visititems(lambda key, node: names.append(key) if _is_image(node) else None)
        dataset = opened[_choose(path, name, names)]
        # MATLAB stores columns first, so HDF5 shows its axes in reverse; every variable of it is so marked.
        from_matlab = "MATLAB_class" in dataset.attrs
        axes = _hdf5_axes(path, dataset.shape, index, from_matlab)
        _check_index(path, index, dataset.shape[axes.index("N")] if index is not None else 0)
        raster = array_raster(dataset, axes, sample=index)
        if from_matlab and dataset.attrs["MATLAB_class"] == b"logical":
            raster = replace(raster, bits=depth_of(np.dtype(np.bool_)))
        yield raster


def _is_image(node: h5py.Group | h5py.Dataset) -> bool:
    return isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "biuf"


def _hdf5_axes(path: Path, shape: tuple[int, ...], index: int | None, from_matlab: bool) -> str:
    if from_matlab:
        known = {2: "WH", 3: "CWH"} if index is None else {3: "WHN", 4: "CWHN"}
        shown = "H x W or H x W x C" if index is None else "N x H x W or N x H x W x C"
        return _axes(path, known, shape, index, f"{shown} in MATLAB")
    if index is not None:
        return _axes(path, {3: "NHW", 4: "NCHW"}, shape, index, "N x H x W or N x C x H x W")
    bands_first = len(shape) == 3 and shape[0] < min(shape[1:])
    known = {2: "HW", 3: "CHW" if bands_first else "HWC"}
    return _axes(path, known, shape, index, "H x W, H x W x C or C x H x W")


def _check_index(path: Path, index: int | None, samples: int) -> None:
    if index is not None and index >= samples:
        raise InputError(f"{path}: the stack holds samples 0 to {samples - 1}; correct the number")


@contextmanager
def open_envi(file: Path) -> Iterator[Raster]:
    """Open an ENVI cube (BIL, BIP or BSQ) by its header or by its data file."""
    from spectral.io import envi
    from spectral.io.spyfile import SpyFile

    data = companion(file)
    header, data = (file, data) if file.suffix.lower() == ".hdr" else (data, file)
    if header is None or data is None:
        raise InputError(
            f"{file}: the {'header (.hdr)' if header is None else 'data file'} of this ENVI cube is missing; "
            "keep the two side by side under one name"
        )
    try:
        cube = envi.open(str(header), str(data))
    except (envi.EnviException, AttributeError) as error:
        raise ValueError(f"not an ENVI header: {error}") from error
    if not isinstance(cube, SpyFile):
        raise ValueError("it holds a spectral library, not an image")
    values = cube.open_memmap(interleave="bip")
    raster = array_raster(values, "HWC")
    if "map info" in cube.metadata:
        from pipeline.gdal_rasters import open_gdal

        with open_gdal(data) as placed:
            raster = replace(raster, georeference=placed.georeference)
    yield raster
