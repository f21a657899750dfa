"""What the values of an image file mean: its colours, and which of its pixels are imagery.

Files say it wrongly in known ways: an infrared band is called alpha, the black or white collar of
a turned sheet has no nodata value, an alpha of 16-bit values ends at 255. So the values themselves
are looked at, in a sample of each file.

Shape legend: B bands of a file, n sampled pixels, H x W pixels of a window.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import cv2
import numpy as np
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

SAMPLE_PX = 256         # side of a sample from overviews
SPOTS = 5               # per side; without overviews so many spots of SPOT_PX are sampled
SPOT_PX = 64
CUT_PERCENT = 1.0       # share of values cut at each end when those of other types are stretched
COLLAR_PX = 32          # a collar holds a square of this side, of one value
COLLAR_SHARE = 0.1      # a collar along this share of the outline of a file is reported
FRINGE_PX = 8           # width of the band beside a collar that compression has changed a little
DIM = 15                # 8-bit values of at most this are classes or bits, and are stretched
DARK = 3                # 8-bit values up to here may be a black collar
FRINGE_DARK = 24
COLOUR_NAMES = {'red': ColorInterp.red, 'green': ColorInterp.green, 'blue': ColorInterp.blue}


class Lost(IntEnum):
    """Why a pixel shows no imagery."""

    OUTSIDE = -1
    NODATA = -2
    TRANSPARENT = -3
    MASKED = -4
    COLLAR = -5

    def __str__(self) -> str:
        return {
            Lost.OUTSIDE: 'outside all files', Lost.NODATA: 'nodata value',
            Lost.TRANSPARENT: 'transparent', Lost.MASKED: 'masked in the file',
            Lost.COLLAR: 'black or white collar'}[self]


@dataclass(frozen=True)
class Samples:
    """How the values of a file are read.

    ``limits`` (3, 2) are the values that become 0 and 255, None for 8-bit values. ``opaque`` is
    the alpha value above which a pixel counts. ``collars`` are the values of the file's type that
    a collar has.
    """

    bands: tuple[int, ...]                   # three, or one that is repeated
    palette: np.ndarray | None = None        # (n, 4) uint8, rgb and alpha
    limits: np.ndarray | None = None
    alpha_band: int | None = None
    opaque: float = 0.0
    masked: bool = False
    nodata: tuple[float | None, ...] = ()
    collars: tuple[float, ...] = ()

    def read(self, dataset, window: Window,
             shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """A window: float32 (H, W, 4), rgb and 1 where there is imagery, else 0; ``Lost`` (H, W).

        With ``shape`` (H, W) it is read coarser, by way of overviews where there are any.
        """
        # A collar is recognised by what lies around the window as well.
        margin = COLLAR_PX + FRINGE_PX if self.collars and shape is None else 0
        left, top = max(0, window.col_off - margin), max(0, window.row_off - margin)
        how = {'window': Window(
            left, top, min(dataset.width, window.col_off + window.width + margin) - left,
            min(dataset.height, window.row_off + window.height + margin) - top)}
        side = COLLAR_PX
        if shape is not None:
            side = max(1, COLLAR_PX * shape[0] // window.height)
            how |= {'out_shape': shape, 'resampling': (
                Resampling.nearest if self.palette is not None else Resampling.average)}
        values = dataset.read(self.bands, **how)                    # (1 or 3, h, w)
        lost = np.zeros(values.shape[1:], np.int8)
        lost[self._without_data(values)] = Lost.NODATA
        if self.masked:
            lost[dataset.dataset_mask(**how) <= 127] = Lost.MASKED
        if self.alpha_band is not None:
            lost[dataset.read(self.alpha_band, **how) <= self.opaque] = Lost.TRANSPARENT
        for value in self.collars:
            lost[(lost == 0) & _collar(values, value, side, lost != 0)] = Lost.COLLAR
        if shape is None:
            inner = np.s_[window.row_off - top:window.row_off - top + window.height,
                          window.col_off - left:window.col_off - left + window.width]
            values, lost = values[(slice(None), *inner)], lost[inner]
        return self._pixels(values, lost), lost

    def _without_data(self, values: np.ndarray) -> np.ndarray:
        """Where all colours have the nodata value, or one is NaN."""
        found = np.zeros(values.shape[1:], bool)
        if all(value is not None for value in self.nodata):
            found = np.all([band == value for band, value in zip(values, self.nodata)], axis=0)
        if values.dtype.kind == 'f':
            found = found | ~np.isfinite(values).all(0)
        return found

    def _pixels(self, values: np.ndarray, lost: np.ndarray) -> np.ndarray:
        """Rgb and weight float32 (H, W, 4); adds what is transparent in a palette to ``lost``."""
        pixels = np.ones((*lost.shape, 4), np.float32)
        if self.palette is not None:
            coloured = self.palette[values[0]]
            lost[(lost == 0) & (coloured[..., 3] < 128)] = Lost.TRANSPARENT
            pixels[..., :3] = coloured[..., :3]
        else:
            pixels[..., :3] = np.moveaxis(values, 0, 2)
        if self.limits is not None:
            low, high = self.limits.T.astype(np.float32)
            pixels[..., :3] = ((pixels[..., :3] - low) * (255.0 / (high - low))).clip(0.0, 255.0)
        pixels[lost != 0] = 0.0
        return pixels


def _collar(values: np.ndarray, value: float, side: int, lost: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of squares of one value, and those beside them that are nearly black or white.

    Pixels outside the array, and those that show no imagery anyway, count as collar.
    """
    def near(tolerance: float) -> np.ndarray:
        return (np.abs(values.astype(np.float32) - value) <= tolerance).all(0) | lost

    eight_bit = values.dtype == np.uint8
    square = cv2.morphologyEx(
        near(DARK if eight_bit else 0.0).astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side)))
    if eight_bit and square.any():
        reach = np.ones((2 * FRINGE_PX + 1, 2 * FRINGE_PX + 1))
        square |= cv2.dilate(square, reach) & near(FRINGE_DARK)
    return square > 0


def describe_samples(path: str, dataset) -> tuple[Samples, np.ndarray | None, list[str]]:
    """How a file is read, its sampled colours where they need a stretch, and what to say of it.

    Raises ValueError for values that are no colours.
    """
    kinds, meaning = set(dataset.dtypes), dataset.colorinterp
    if any(np.dtype(kind).kind == 'c' for kind in kinds) or ColorInterp.cyan in meaning:
        raise ValueError(
            f'{path} has {", ".join(sorted(kinds))} samples ({meaning[0].name} first); '
            'expected grey or red, green and blue: gdal_translate -ot Byte -scale, or '
            '-expand rgb, converts')
    if set(meaning) == {ColorInterp.alpha}:
        raise ValueError(f'{path} holds transparency alone; expected grey or red, green and blue')
    notes = []
    found = Samples(_colour_bands(_named_colours(dataset), notes))
    found = replace(found, nodata=tuple(dataset.nodatavals[band - 1] for band in found.bands))
    kind = np.dtype(dataset.dtypes[found.bands[0] - 1])
    if meaning[0] == ColorInterp.palette:
        entries = dataset.colormap(1)
        found = replace(found, palette=np.array(
            [entries.get(value, (0, 0, 0, 255)) for value in range(np.iinfo(kind).max + 1)],
            np.uint8))
    hidden = False
    if ColorInterp.alpha in meaning:
        band = meaning.index(ColorInterp.alpha) + 1
        alpha = _sample(dataset, (band,))[0][0]
        if _is_picture(alpha):
            notes.append(f'band {band} is called alpha and holds many values: taken for infrared, '
                         'not for transparency')
        else:
            found = replace(found, alpha_band=band, opaque=alpha.max() / 2.0)
            hidden = alpha <= found.opaque
    elif MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        found = replace(found, masked=True)
    if found.palette is not None:
        return found, None, notes
    values, outline = _sample(dataset, found.bands)
    valid = ~found._without_data(values[:, None])[0]
    ends = (0.0, float(np.iinfo(kind).max)) if kind.kind in 'iu' else (0.0,)
    if kind != np.uint8 and valid.any():    # such as -9999, which no tag declares
        ends += float(values[:, valid].min()), float(values[:, valid].max())
    near = DARK if kind == np.uint8 else 0.0
    edge = values[:, outline & valid].astype(float)
    shares = {end: (np.abs(edge - end) <= near).all(0) for end in ends if edge.size}
    found = replace(found, collars=tuple(end for end, at in shares.items() if at.any()))
    notes += [
        f'the value {end:g}, which is not declared as nodata, fills part of the edge: such a '
        'collar is taken for no imagery'
        for end, at in shares.items() if at.mean() >= COLLAR_SHARE]
    if kind == np.uint8:
        is_dim = valid.any() and values[:, valid].min() < values[:, valid].max() <= DIM
        return found, values[:, valid] if is_dim else None, notes
    # What is black throughout, or has the value of a collar, says nothing of the contrast.
    shown = valid & ~np.asarray(hidden)
    for value in (0.0, *found.collars):
        shown &= (values != value).any(0)
    return found, values[:, shown], notes


def _named_colours(dataset) -> tuple[ColorInterp, ...]:
    """What each band is, by its tag or, where no tag names the colours, by its description."""
    named = [COLOUR_NAMES.get((text or '').strip().lower()) for text in dataset.descriptions]
    if ColorInterp.red in dataset.colorinterp or not set(COLOUR_NAMES.values()) <= set(named):
        return dataset.colorinterp
    return tuple(name or ColorInterp.undefined for name in named)


def _colour_bands(meaning, notes: list[str]) -> tuple[int, ...]:
    if meaning[0] == ColorInterp.palette:
        return (1,)
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in meaning for colour in rgb):
        return tuple(meaning.index(colour) + 1 for colour in rgb)
    plain = [band for band, use in enumerate(meaning, 1) if use != ColorInterp.alpha]
    if len(plain) < 3:
        notes.append('one band, shown as grey')
        return (plain[0],)
    notes.append(f'bands {plain[0]}, {plain[1]} and {plain[2]} are taken for red, green and blue, '
                 'as the file does not say')
    return tuple(plain[:3])


def stretch(values: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """Limits (1 or 3, 2) for the sampled colours of files that are shown alike, and what to say.

    Values that are 8-bit ones in a larger type stay as they are.
    """
    joined = np.concatenate([each[:, np.isfinite(each).all(0)] for each in values], axis=1)
    if joined.size and joined.dtype.kind in 'iu' and (
            joined.min() >= 0 and DIM < joined.max() <= 255):
        return np.tile([0.0, 255.0], (len(joined), 1)), 'values up to 255: taken as 8-bit ones'
    if not joined.size:
        joined = np.zeros((len(joined), 1))
    limits = np.percentile(joined, [CUT_PERCENT, 100.0 - CUT_PERCENT], axis=1).T
    limits[:, 1] = np.maximum(limits[:, 1], limits[:, 0] + 1e-6 * np.abs(limits[:, 0]) + 1e-6)
    spans = ', '.join(f'{low:.4g} to {high:.4g}' for low, high in limits)
    return limits, (f'{values[0].dtype} values: {spans} become 0 to 255 ({CUT_PERCENT:g} % are '
                    'cut at each end); for other limits: gdal_translate -ot Byte -scale')


def _is_picture(alpha: np.ndarray) -> bool:
    """Whether the values of an alpha band are spread, as those of a picture are."""
    between = (alpha > 0.1 * alpha.max()) & (alpha < 0.9 * alpha.max())
    return between.mean() > 0.2 and len(np.unique(alpha[between])) > 16


def _sample(dataset, bands) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (B, n) of some bands, and which of them (n,) lie on the outline of the file."""
    height, width = dataset.shape
    small = min(height, SAMPLE_PX), min(width, SAMPLE_PX)
    if dataset.overviews(bands[0]) or height * width <= (SPOTS * SPOT_PX) ** 2:
        parts = [(dataset.read(list(bands), out_shape=small), (0, 0, *small))]
        height, width = small
    else:
        tall, broad = min(height, SPOT_PX), min(width, SPOT_PX)
        parts = []
        for top in np.linspace(0, height - tall, SPOTS).astype(int).tolist():
            for left in np.linspace(0, width - broad, SPOTS).astype(int).tolist():
                values = dataset.read(list(bands), window=Window(left, top, broad, tall))
                parts.append((values, (top, left, tall, broad)))
    pixels, outline = [], []
    for values, (top, left, tall, broad) in parts:
        row, col = np.indices((tall, broad)) + np.array([top, left])[:, None, None]
        edge = (row == 0) | (row == height - 1) | (col == 0) | (col == width - 1)
        outline.append(edge.ravel())
        pixels.append(values.reshape(len(bands), -1))
    return np.concatenate(pixels, axis=1), np.concatenate(outline)
