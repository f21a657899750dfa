"""Channels of a descriptor that are not learned: plain properties of the pixels of a cell.

A network that learns to ignore how a renderer paints things also ignores what real cameras agree
on: grass is greener and warmer than asphalt, lines are lighter, and an edge is an edge.  These
channels keep that.  Each is brought to mean 0 and deviation 1, in the imagery within a square
about each cell, so that neither exposure nor contrast counts.  A network has the first N of them.

Shape legend: B images, H x W pixels of -1..1, R x C cells, N channels.
"""

import torch
import torch.nn.functional as F

PROPERTIES = ('edges', 'warmth', 'greenness', 'marks')
# Values of imagery are stored within +-1: they are divided by this, and cut off.
LARGEST = 4.0
SQUARE_CELLS = (17, 31, 31, 17)         # within which values are compared, per channel
LEAST_DEVIATION = (0.01, 0.003, 0.003, 0.01)  # of a square: a smaller one is taken for noise
GREY_LEVEL = 1.4    # added to a pixel's brightness: dark pixels have unreliable colours
MARK_PX, AROUND_PX = 3, 9               # sides of a mark and of what it is compared with
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16.0


def pixel_properties(images: torch.Tensor) -> torch.Tensor:
    """All PROPERTIES (B, 4, H, W) of (B, 3, H, W); warmth is red against blue."""
    rgb = (images * 0.5 + 0.5).clamp(0.0, 1.0)
    red, green, blue = rgb.split(1, 1)
    level = rgb.amax(1, keepdim=True) + GREY_LEVEL
    return torch.cat((
        edge_strength(images), (red - blue) / level, (2.0 * green - red - blue) / level,
        mark_strength(images)), 1)


def edge_strength(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) to the square root of their slope (B, 1, H, W).

    The root, as one strong edge must not outweigh all the others.
    """
    grey = F.conv2d(F.pad(images.mean(1, keepdim=True), (2, 2, 2, 2), 'replicate'),
                    BLUR.to(images))
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return (across.square() + down.square() + 1e-12).pow(0.25)


def mark_strength(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) to the root (B, 1, H, W) of what is lighter than its surroundings.

    That is a white top-hat of means: it shows lines, kerbs and posts.  What is darker is often a
    shadow, and counts as nothing.
    """
    grey = images.mean(1, keepdim=True)
    mark = _mean_about(grey, MARK_PX)
    return (mark - _mean_about(mark, AROUND_PX)).clamp(min=0.0).sqrt()


def satellite_channels(images: torch.Tensor, cell_px: int, count: int) -> torch.Tensor:
    """``count`` channels (B, N, R, C) of imagery, each compared with a square about its cell."""
    values = F.avg_pool2d(pixel_properties(images)[:, :count], cell_px)
    found = []
    for value, side, least in zip(values.split(1, 1), SQUARE_CELLS, LEAST_DEVIATION):
        mean, square = (_mean_about(x, side) for x in (value, value.square()))
        deviation = (square - mean.square()).clamp(min=least ** 2).sqrt()
        found.append(((value - mean) / (LARGEST * deviation)).clamp(-1.0, 1.0))
    return torch.cat(found, 1)


def ground_channels(road: torch.Tensor, credible: torch.Tensor, cell_px: int,
                    count: int) -> torch.Tensor:
    """``count`` channels (B, N, R, C) of the projected road (B, 4, H, W), whose last is a mask.

    ``credible`` (B, 1, R, C) in [0, 1] says how far each cell shows the ground; the channels are
    multiplied by it.  Mean and deviation are those of the credible cells.
    """
    mask = (F.avg_pool2d(road[:, 3:], 3, 1, 1) > 0.999).to(road.dtype)
    seen = F.avg_pool2d(mask, cell_px)                                  # (B, 1, R, C)
    values = pixel_properties(road[:, :3])[:, :count]
    values = F.avg_pool2d(values * mask, cell_px) / seen.clamp(min=1e-3)
    weight = seen * credible
    area = weight.sum((2, 3), keepdim=True).clamp(min=1e-3)             # (B, 1, 1, 1)
    mean = (weight * values).sum((2, 3), keepdim=True) / area           # (B, N, 1, 1)
    off = values - mean
    least = torch.tensor(LEAST_DEVIATION[:count]).to(values).view(1, -1, 1, 1)
    deviation = ((weight * off.square()).sum((2, 3), keepdim=True) / area).clamp(min=1e-12).sqrt()
    return weight * (off / deviation.clamp(min=least)).clamp(-LARGEST, LARGEST)


def _mean_about(values: torch.Tensor, side: int) -> torch.Tensor:
    """The mean over the square of ``side`` about each element; the edge goes on outwards."""
    padded = F.pad(values, (side // 2,) * 4, 'replicate')
    return F.avg_pool2d(padded, side, 1)
