"""Head phantoms for the medical task: one anatomy, seen as CT, T2- and T1-weighted MRI, and PET.

The phantoms imitate how tissues look in each modality, nothing else; they are of no diagnostic use.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pipeline.demo_canvas import Array, Size, Views, clouds

# Piecewise linear colours of the pseudo-colour PET pictures: activity, R, G, B.
PET_COLOURS = np.array(
    [
        [0.00, 0.0, 0.0, 0.0],
        [0.12, 0.0, 0.0, 0.45],
        [0.30, 0.05, 0.35, 0.95],
        [0.42, 0.2, 0.75, 0.85],
        [0.50, 0.95, 0.95, 0.3],
        [0.65, 1.0, 0.72, 0.0],
        [0.80, 1.0, 0.25, 0.0],
        [0.92, 0.95, 0.0, 0.25],
        [1.00, 1.0, 0.2, 1.0],
    ]
)

# Tissue -> CT (brain window), T2, T1 signal and PET activity.
TISSUES = {
    "air": (0.0, 0.0, 0.0, 0.0),
    "skin": (0.32, 0.42, 0.72, 0.07),
    "bone": (1.0, 0.05, 0.10, 0.02),
    "marrow": (0.95, 0.22, 0.42, 0.04),
    "fluid": (0.40, 0.95, 0.13, 0.05),
    "grey": (0.60, 0.52, 0.50, 0.80),
    "white": (0.55, 0.34, 0.74, 0.36),
    "nuclei": (0.61, 0.44, 0.56, 0.92),
    "tumour": (0.68, 0.66, 0.40, 1.05),
    "oedema": (0.47, 0.74, 0.52, 0.20),
    "bleeding": (0.90, 0.20, 0.62, 0.10),
}
NAMES = list(TISSUES)


def _inside(field: Array, soft: float = 0.7) -> Array:
    """Coverage of field > 0, `field` in pixels."""
    return np.clip(field / soft * 0.5 + 0.5, 0, 1)


def anatomy(rng: np.random.Generator, size: Size) -> tuple[Array, str]:
    """Tissue fractions (tissues, H, W) of an axial slice, which sum to one, and its lesion ('' for none)."""
    h, w = size
    scale = h / 160
    cy, cx = h * 0.5 + rng.uniform(-2, 2), w * 0.5 + rng.uniform(-1.5, 1.5)
    rows, cols = np.indices(size, dtype=float)
    tilt = rng.uniform(-0.06, 0.06)
    dy, dx = rows - cy, cols - cx
    y, x = dy * np.cos(tilt) - dx * np.sin(tilt), dx * np.cos(tilt) + dy * np.sin(tilt)
    angle = np.arctan2(y, x)
    ry, rx = rng.uniform(66, 71) * scale, rng.uniform(52, 57) * scale
    outline = 1 + 0.015 * np.cos(3 * angle + 1.5) + 0.008 * np.cos(4 * angle)
    outline -= 0.03 * np.sin(angle) ** 3 * np.abs(np.sin(angle))
    radius = np.hypot(y, x) + 1e-6
    border = outline / np.sqrt((np.sin(angle) / ry) ** 2 + (np.cos(angle) / rx) ** 2)
    border = border * (1 + 0.006 * np.cos(angle * 5 + rng.uniform(0, 6)))
    depth = border - radius  # pixels below the skin
    skin, bone = rng.uniform(4.0, 5.5) * scale, rng.uniform(5.0, 6.5) * scale
    bone_map = bone * (1 + 0.25 * np.sin(angle) ** 2)
    fractions = np.zeros((len(NAMES), *size))
    fractions[NAMES.index("air")] = 1

    def lay(name: str, cover: Array) -> None:
        fractions[:] *= 1 - cover
        fractions[NAMES.index(name)] += cover

    lay("skin", _inside(depth))
    lay("bone", _inside(depth - skin))
    lay("marrow", _inside(1.1 * scale - np.abs(depth - skin - 0.55 * bone_map)) * 0.8)
    lay("fluid", _inside(depth - skin - bone_map))
    brain = depth - skin - bone_map - 2.2 * scale  # pixels below the surface of the brain
    lay("grey", _inside(brain))

    # Folds: band-passed noise makes the labyrinth of gyri; sulci are its zero lines, fading inwards.
    noise = rng.standard_normal(size)
    mirrored = noise + 0.8 * noise[:, ::-1]
    folds = ndimage.gaussian_filter(mirrored, 2.6 * scale) - ndimage.gaussian_filter(mirrored, 4.4 * scale)
    folds /= folds.std()
    sulci = np.abs(folds) / (np.hypot(*np.gradient(folds)) + 0.12)  # about the distance to a zero line
    reach = rng.uniform(17, 22) * scale
    cortex = np.clip(1.25 - brain / reach, 0, 1)
    grey_wide = (3.1 * scale) * cortex
    in_white = np.minimum(sulci - grey_wide, brain - 3.2 * scale)
    lay("white", _inside(np.where(cortex > 0, in_white, brain - 3.2 * scale)))
    lay("fluid", _inside((1.15 * scale) * cortex - sulci) * _inside(brain + 1) * np.clip(cortex * 1.6, 0, 1))
    wave = 1.2 * scale * np.sin(y / (6 * scale) + rng.uniform(0, 6))
    fissure = np.abs(x + 0.5 * wave) - 0.8 * scale
    ends = np.maximum(y - 26 * scale, -y - 20 * scale)
    lay("grey", _inside(np.minimum(-np.abs(x + 0.5 * wave) + 3.6 * scale, np.minimum(ends, brain))))
    lay("fluid", _inside(-fissure) * _inside(np.minimum(ends, brain + 2)))

    # Deep structures, mirrored: lateral ventricles like a butterfly, nuclei beside them.
    wide = rng.uniform(0.8, 1.3)
    for side in (-1.0, 1.0):
        u, v = side * x / scale, y / scale + rng.uniform(-0.8, 0.8)

        def oval(
            u0: float, v0: float, ru: float, rv: float, turn: float, u: Array = u, v: Array = v
        ) -> Array:
            a = (u - u0) * np.cos(turn) + (v - v0) * np.sin(turn)
            b = (v - v0) * np.cos(turn) - (u - u0) * np.sin(turn)
            return (1 - np.hypot(a / ru, b / rv)) * min(ru, rv) * scale

        lay("nuclei", _inside(oval(17, 1, 5, 11, 0.25)))  # putamen
        lay("white", _inside(oval(12.3, 0, 1.3, 11, 0.35)))  # internal capsule
        lay("nuclei", _inside(oval(7.5, 9, 5, 6.5, 0.3)))  # thalamus
        lay("nuclei", _inside(oval(9.5, -10, 3.2, 6, 0.3)))  # caudate
        lay("fluid", _inside(oval(5.5, -9, 2.6 * wide, 10, -0.32)))  # frontal horn
        lay("fluid", _inside(oval(13, 20, 2.8 * wide, 9, -0.45)))  # occipital horn
    lay("fluid", _inside((1 - np.hypot(x / (1.3 * scale), (y - 7 * scale) / (7 * scale))) * 1.3 * scale))

    lesion = str(rng.choice(["", "tumour", "bleeding"]))
    if lesion:
        spot_y, spot_x = rng.uniform(-30, 34) * scale, rng.choice([-1.0, 1.0]) * rng.uniform(19, 30) * scale
        size_ = rng.uniform(6, 9) * scale
        blob = size_ - np.hypot(y - spot_y, x - spot_x) + 1.6 * scale * clouds(rng, size, 2.0, 30)
        within = _inside(brain - 3)
        lay("oedema", _inside(blob + 4.5 * scale, 3) * within * 0.85)
        lay(lesion, _inside(blob) * within)
    return fractions, lesion


def scan(rng: np.random.Generator, fractions: Array, column: int, blur: float, noise: float) -> Array:
    """One modality (H, W): a column of TISSUES, resolution `blur` in pixels, slow shading, noise."""
    values = np.array([TISSUES[name][column] for name in NAMES])
    picture = np.tensordot(values, fractions, axes=(0, 0))
    body = ndimage.gaussian_filter(1 - fractions[NAMES.index("air")], 1.0)
    picture = picture * (1 + 0.03 * clouds(rng, picture.shape, 2.2))
    grain = ndimage.gaussian_filter(rng.standard_normal(picture.shape), 0.6) * 1.8
    return np.clip(ndimage.gaussian_filter(picture, blur) + noise * grain * (0.15 + 0.85 * body), 0, 1)


def pet_colours(activity: Array) -> Array:
    """Activity (H, W) in [0, 1] -> RGB (H, W, 3), black through blue, yellow and red to magenta."""
    level = PET_COLOURS[:, 0]
    return np.stack([np.interp(activity, level, colour) for colour in PET_COLOURS[:, 1:].T], axis=-1)


def medical(rng: np.random.Generator, index: int, size: Size = (160, 160)) -> Views:
    """Even samples: `ct` and `mri` (T2), both grey. Odd samples: `pet` in pseudo-colour and `mri` (T1)."""
    fractions, lesion = anatomy(rng, size)
    finding = {"": "", "tumour": " with a tumour", "bleeding": " with a bleeding"}[lesion]
    labels: tuple[str, ...] = ()
    masks = None
    if lesion:
        labels, masks = ("lesion",), (fractions[NAMES.index(lesion)] > 0.5)[None]
    if index % 2 == 0:
        images = {"ct": scan(rng, fractions, 0, 0.7, 0.018), "mri": scan(rng, fractions, 1, 0.4, 0.012)}
        return Views(images, f"Axial CT and T2 MRI slices of a head{finding}.", None, labels, masks)
    activity = scan(rng, fractions, 3, 2.2, 0.01)
    activity = np.clip(activity / max(float(activity.max()), 1e-6), 0, 1)
    images = {"pet": pet_colours(activity), "mri": scan(rng, fractions, 2, 0.4, 0.012)}
    return Views(images, f"Axial PET and T1 MRI slices of a head{finding}.", None, labels, masks)
