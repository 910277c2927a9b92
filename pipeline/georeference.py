"""Where on Earth an image's pixels lie, carried from a source to the fused file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rasterio.io import DatasetReader, DatasetWriter

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class GroundControlPoint:
    """A pixel (``row``, ``column``, from the upper left corner) of known place (``x``, ``y``, ``z``)."""

    row: float
    column: float
    x: float
    y: float
    z: float


@dataclass(frozen=True, slots=True)
class GeoReference:
    """Coordinate system and place of an image, as plain values: hashable, picklable.

    ``crs`` is WKT, that of the control points where there are any. ``transform`` (a, b, c, d, e, f) takes a
    pixel to x = a column + b row + c, y = d column + e row + f. ``rpcs`` are the rational polynomial
    coefficients by their GDAL names (RFC 22). ``pixel_is`` says whether coordinates mean a pixel's ``Area``
    or its centre ``Point``.
    """

    crs: str | None = None
    transform: Transform | None = None
    control_points: tuple[GroundControlPoint, ...] = ()
    rpcs: tuple[tuple[str, str], ...] = ()
    pixel_is: str = "Area"

    def window(self, top: int, left: int) -> GeoReference:
        """The same reference for the window whose first pixel is (``top``, ``left``)."""
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a, b, c + a * left + b * top, d, e, f + d * left + e * top)
        moved = {"LINE_OFF": top, "SAMP_OFF": left}
        return replace(
            self,
            transform=transform,
            control_points=tuple(
                replace(point, row=point.row - top, column=point.column - left)
                for point in self.control_points
            ),
            rpcs=tuple(
                (name, repr(float(value) - moved[name]) if name in moved else value)
                for name, value in self.rpcs
            ),
        )

    def write_to(self, dataset: DatasetWriter) -> None:
        """Give this reference to a GeoTIFF that rasterio has opened for writing."""
        from affine import Affine
        from rasterio.control import GroundControlPoint as Point
        from rasterio.crs import CRS
        from rasterio.rpc import RPC

        crs = CRS.from_wkt(self.crs) if self.crs else None
        if self.control_points:
            points = [Point(p.row, p.column, p.x, p.y, p.z) for p in self.control_points]
            dataset.gcps = (points, crs)
        else:
            if crs is not None:
                dataset.crs = crs
            if self.transform is not None:
                dataset.transform = Affine(*self.transform)
        if self.rpcs:
            dataset.rpcs = RPC.from_gdal(dict(self.rpcs))
        dataset.update_tags(AREA_OR_POINT=self.pixel_is)


def georeference_of(dataset: DatasetReader) -> GeoReference | None:
    """The reference of an image that rasterio has opened, None when it has none."""
    points, points_crs = dataset.gcps
    crs = points_crs if points else dataset.crs
    reference = GeoReference(
        crs=crs.to_wkt() if crs else None,
        transform=None if dataset.transform.is_identity else tuple(dataset.transform)[:6],
        control_points=tuple(GroundControlPoint(p.row, p.col, p.x, p.y, p.z or 0.0) for p in points),
        rpcs=tuple(sorted(dataset.rpcs.to_gdal().items())) if dataset.rpcs else (),
        pixel_is=dataset.tags().get("AREA_OR_POINT", "Area"),
    )
    return None if reference == GeoReference(pixel_is=reference.pixel_is) else reference
