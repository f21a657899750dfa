"""Random changes of pictures that take away what a renderer's or a camera's colours would tell.

Each view is changed by itself.  In some samples brightness, contrast and even the order of
brightness say nothing about whether two views show the same ground; in the others grass stays
green and roads stay grey, as in pictures of real cameras, and the network may rely on it.
"""

import cv2
import numpy as np


def changed(rgb: np.ndarray, rng: np.random.Generator, blur_px: float,
            any_colours: bool) -> np.ndarray:
    """A picture (H, W, 3) uint8 under random optics, exposure, colours and compression.

    ``blur_px`` is the largest sigma of a blur.  Colours become any others, or differ as those of
    two cameras do.
    """
    out = rgb
    if rng.random() < 0.45:
        out = _blurred_or_sharpened(out, rng, blur_px)
    if rng.random() < 0.25:
        out = _shadowed(out, rng)
    out = _recoloured(out, rng) if any_colours else _exposed(out, rng)
    if rng.random() < 0.3:
        out = _shaded(out, rng)
    if rng.random() < 0.5:
        sigma = np.float32(rng.uniform(1.0, 10.0))
        noise = rng.standard_normal(out.shape, np.float32) * sigma
        out = np.clip(out.astype(np.float32) + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode('.jpg', out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 95))])
        out = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return out


def _blurred_or_sharpened(rgb, rng, blur_px):
    sigma = rng.uniform(0.3, blur_px)
    soft = cv2.GaussianBlur(rgb, (0, 0), sigma)
    if rng.random() < 0.65:
        return soft
    amount = rng.uniform(0.2, 1.2)
    return cv2.addWeighted(rgb, 1.0 + amount, soft, -amount, 0.0)


def _exposed(rgb, rng):
    """Exposure, contrast, white balance and saturation of another camera."""
    gain, gamma = np.exp(rng.normal(0.0, 0.25)), np.exp(rng.normal(0.0, 0.3))
    table = _tone_table(gamma, gain, rng.normal(0.0, 0.04), np.exp(rng.normal(0.0, 0.06, 3)))
    out = _toned(rgb, table)
    return cv2.transform(out, _saturation_matrix(rng.uniform(0.4, 1.5)).astype(np.float32))


def _recoloured(rgb, rng):
    """Tone curves a channel, then a random mixture of the channels."""
    levels = np.arange(256) / 255.0
    gamma = np.exp(rng.normal(0.0, 0.35))
    gain, offset = np.exp(rng.normal(0.0, 0.25)), rng.normal(0.0, 0.06)
    table = _tone_table(gamma, gain, offset, np.exp(rng.normal(0.0, 0.08, 3)))
    if rng.random() < 0.6:
        knots = int(rng.integers(3, 7))
        curve = np.stack([
            np.interp(levels, np.linspace(0, 1, knots), rng.uniform(0.0, 1.0, knots))
            for _ in range(3)], 1)
        if rng.random() < 0.5:
            curve = curve[:, :1].repeat(3, 1)
        share = rng.uniform(0.2, 1.0)
        table = share * curve + (1.0 - share) * table
    out = _toned(rgb, table)
    saturation = rng.uniform(0.0, 1.8) if rng.random() < 0.8 else 0.0
    matrix = _saturation_matrix(saturation)
    if rng.random() < 0.5:  # turn the hues
        angle = rng.uniform(-np.pi, np.pi)
        axis = np.ones(3) / np.sqrt(3.0)
        cross = np.cross(np.eye(3), axis)
        turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (
            1.0 - np.cos(angle)) * np.outer(axis, axis)
        matrix = matrix @ turn
    return cv2.transform(out, matrix.astype(np.float32))


def _tone_table(gamma, gain, offset, tint):
    """Output (256, 3) in 0..1, before clipping, of each input level."""
    levels = np.arange(256)[:, None] / 255.0
    return (gain * levels ** gamma + offset) * tint


def _toned(rgb, table):
    return cv2.LUT(rgb, np.clip(table * 255.0, 0, 255).astype(np.uint8)[None])


def _saturation_matrix(saturation):
    """Matrix (3, 3) of RGB: 0 gives grey, 1 changes nothing."""
    grey = np.full((3, 3), 1 / 3)
    return grey + saturation * (np.eye(3) - grey)


def _shaded(rgb, rng):
    """A slow change of brightness over the picture."""
    coarse = np.exp(rng.normal(0.0, 0.3, (int(rng.integers(2, 6)), int(rng.integers(2, 6)))))
    field = cv2.resize(coarse.astype(np.float32), (rgb.shape[1], rgb.shape[0]),
                       interpolation=cv2.INTER_CUBIC)
    return np.clip(rgb * field[..., None], 0, 255).astype(np.uint8)


def _shadowed(rgb, rng):
    """One or two shadows of large buildings or bridges, with straight edges."""
    height, width = rgb.shape[:2]
    rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
    light = np.ones((height, width), np.float32)
    for _ in range(rng.integers(1, 3)):
        angle = rng.uniform(-np.pi, np.pi)
        across = (np.cos(angle) * (cols - rng.uniform(0.0, width))
                  + np.sin(angle) * (rows - rng.uniform(0.0, height)))
        breadth = rng.uniform(0.05, 0.35) * min(height, width)
        inside = np.clip((breadth - np.abs(across)) / rng.uniform(1.0, 4.0), 0.0, 1.0)
        light *= 1.0 - inside.astype(np.float32) * np.float32(rng.uniform(0.3, 0.85))
    return (rgb * light[..., None]).astype(np.uint8)
