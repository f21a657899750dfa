"""Decode the bytes of an image to rgb (H, W, 3) uint8: raw ROS encodings, jpeg and png.

Raises ValueError, with what was found and what was expected, if the image is incomplete or broken.
"""

import re

import cv2
import numpy as np

# Number of channels of an encoding, and its cv2 conversion to RGB (None: it is RGB already).
# ROS names a Bayer pattern by the first two pixels of the first row, then of the second.  So do
# the four-letter names of cv2; its two-letter names (COLOR_BayerBG2RGB) begin at another pixel.
PLAIN_ENCODINGS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    '8UC4': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
    'bayer_rggb8': (1, cv2.COLOR_BayerRGGB2RGB),
    'bayer_bggr8': (1, cv2.COLOR_BayerBGGR2RGB),
    'bayer_gbrg8': (1, cv2.COLOR_BayerGBRG2RGB),
    'bayer_grbg8': (1, cv2.COLOR_BayerGRBG2RGB),
    'yuv422': (2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (2, cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': (2, cv2.COLOR_YUV2RGB_YUY2),
}
# The same with 16 bits per channel, of which the upper 8 that are in use are kept.
WIDE_ENCODINGS = {
    name.replace('8', '16'): layout for name, layout in PLAIN_ENCODINGS.items() if '8' in name
}
ENCODINGS = {**PLAIN_ENCODINGS, **WIDE_ENCODINGS}


# The marks of a jpeg, without those within its coded pixels: FF00 and FFD0 to FFD7.
JPEG_MARK = re.compile(rb'\xff+([^\x00\xff\xd0-\xd7])')
JPEG_END = 0xd9


class BitDepth:
    """How many of the 16 bits of its pixels a camera uses: 10, 12, 14 or 16.

    It is estimated from the largest value so far: a sensor of 12 bits fills the lower ones.
    """

    def __init__(self):
        self.bits = 10

    def upper_8(self, pixels: np.ndarray) -> np.ndarray:
        """The upper 8 of the bits in use, uint8, of uint16 of any shape."""
        while self.bits < 16 and pixels.max(initial=0) >> self.bits:
            self.bits += 2
        return (pixels >> (self.bits - 8)).astype(np.uint8)


def rgb_from_raw(
    data, width_px: int, height_px: int, step_bytes: int, encoding: str, is_big_endian: bool,
    bit_depth: BitDepth | None = None,
) -> np.ndarray:
    """Decode a raw image with rows of ``step_bytes``; ``encoding`` is one of ENCODINGS.

    ``bit_depth`` is that of the camera where its 16 bit images were decoded before.
    """
    channels, to_rgb = ENCODINGS[encoding]
    is_wide = encoding in WIDE_ENCODINGS
    row_bytes = width_px * channels * (2 if is_wide else 1)
    data = np.frombuffer(data, dtype=np.uint8)
    if width_px < 1 or height_px < 1 or step_bytes < row_bytes or (
            data.size < step_bytes * height_px) or (channels == 2 and width_px % 2):
        raise ValueError(
            f'image of {width_px}x{height_px} px in {encoding} has step {step_bytes} and '
            f'{data.size} bytes; expected a step of {row_bytes} or more, and step * height bytes')
    pixels = data[:step_bytes * height_px].reshape(height_px, step_bytes)[:, :row_bytes]
    if is_wide:
        wide = np.ascontiguousarray(pixels).view('>u2' if is_big_endian else '<u2')
        pixels = (bit_depth or BitDepth()).upper_8(wide)
    pixels = np.ascontiguousarray(pixels).reshape(height_px, width_px, channels)
    return pixels if to_rgb is None else cv2.cvtColor(pixels, to_rgb)


def rgb_from_compressed(
    data, image_format: str, bit_depth: BitDepth | None = None,
) -> np.ndarray:
    """Decode a jpeg or png; ``image_format`` is that of a sensor_msgs/CompressedImage.

    ``bit_depth`` is that of the camera where its 16 bit images were decoded before.

    A single channel is a Bayer mosaic if the format begins with that encoding, as in
    "bayer_rggb8; jpeg compressed"; otherwise it is grey.
    """
    data = np.frombuffer(data, dtype=np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if _is_whole(data) else None
    except cv2.error:  # a size beyond OPENCV_IO_MAX_IMAGE_PIXELS, among others
        pixels = None
    if pixels is None:
        raise ValueError(
            f'compressed image of {data.size} bytes with format {image_format!r} does not decode; '
            'expected a whole jpeg or png')
    if pixels.dtype == np.uint16:
        pixels = (bit_depth or BitDepth()).upper_8(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f'compressed image with format {image_format!r} decodes to {pixels.dtype}; expected '
            '8 or 16 bits per channel')
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    encoding = image_format.split(';')[0].strip().replace('16', '8')
    if channels == 1 and encoding.startswith('bayer_') and encoding in PLAIN_ENCODINGS:
        return cv2.cvtColor(pixels, PLAIN_ENCODINGS[encoding][1])
    return cv2.cvtColor(pixels, {
        1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels])


def _is_whole(data: np.ndarray) -> bool:
    """False for a truncated jpeg or png, which some decoders turn into half a picture.

    The end is found by the structure: whatever a driver leaves behind it does not matter.
    """
    data = data.tobytes()
    if data.startswith(b'\xff\xd8'):
        return _has_jpeg_end(data)
    if data.startswith(b'\x89PNG'):
        return _has_png_end(data)
    return bool(data)


def _has_jpeg_end(data: bytes) -> bool:
    at = 2
    while mark := JPEG_MARK.search(data, at):
        if mark[1][0] == JPEG_END:
            return True
        # Each other mark begins a segment; a thumbnail within one has an end of its own.
        at = mark.end() + max(int.from_bytes(data[mark.end():mark.end() + 2], 'big'), 2)
    return False


def _has_png_end(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        if data[at + 4:at + 8] == b'IEND':
            return True
        at += 12 + int.from_bytes(data[at:at + 4], 'big')  # length, name and check sum
    return False
