"""Raw and compressed images to rgb: every encoding, padding and byte order, every refusal."""

import cv2
import numpy as np
import pytest

from crossview_localizer.camera.decoding import BitDepth, rgb_from_compressed, rgb_from_raw

RGB = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHA = np.full((6, 8, 1), 7, np.uint8)
GREY = RGB[..., 0]
GREY_RGB = np.repeat(GREY[..., None], 3, -1)


def rgb_of(pixels: np.ndarray, encoding: str, padding=0, is_big_endian=False) -> np.ndarray:
    """Decode (H, W) or (H, W, C) values with ``padding`` bytes of 0xAA after each row."""
    if is_big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder('>'))
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    return rgb_from_raw(
        rows.tobytes(), pixels.shape[1], pixels.shape[0], rows.shape[1], encoding, is_big_endian)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(('encoding', 'pixels', 'expected'), [
    ('rgb8', RGB, RGB),
    ('bgr8', RGB[..., ::-1], RGB),
    ('8UC3', RGB[..., ::-1], RGB),
    ('rgba8', np.concatenate([RGB, ALPHA], -1), RGB),
    ('bgra8', np.concatenate([RGB[..., ::-1], ALPHA], -1), RGB),
    ('8UC4', np.concatenate([RGB[..., ::-1], ALPHA], -1), RGB),
    ('mono8', GREY, GREY_RGB),
    ('8UC1', GREY, GREY_RGB),
])
def test_a_plain_encoding_becomes_rgb_whatever_its_row_padding(
        encoding, pixels, expected, padding):
    rgb = rgb_of(np.ascontiguousarray(pixels), encoding, padding)
    np.testing.assert_array_equal(rgb, expected)
    assert rgb.dtype == np.uint8


@pytest.mark.parametrize('encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2'])
def test_packed_yuv_becomes_rgb(encoding):
    # Red is Y 81, U 90, V 240 (ITU-R BT.601); U and V alternate.
    chroma, luma = np.tile(np.array([90, 240], np.uint8), (2, 2)), np.full((2, 4), 81, np.uint8)
    order = (chroma, luma) if encoding in ('uyvy', 'yuv422') else (luma, chroma)
    rgb = rgb_from_raw(np.stack(order, axis=2).tobytes(), 4, 2, 8, encoding, False)
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() <= 3


def test_packed_yuv_of_an_odd_width_is_refused():
    with pytest.raises(ValueError, match='3x1 px in yuyv'):
        rgb_from_raw(bytes(6), 3, 1, 6, 'yuyv', False)


@pytest.mark.parametrize('is_big_endian', [False, True])
def test_sixteen_bits_keep_the_upper_eight_in_either_byte_order(is_big_endian):
    values = (GREY.astype(np.uint16) << 8) | 0x5A
    for encoding in ('mono16', '16UC1'):
        np.testing.assert_array_equal(rgb_of(values, encoding, 4, is_big_endian), GREY_RGB)


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_a_sensor_that_fills_the_lower_bits_is_not_black(bits):
    values = GREY.astype(np.uint16) << (bits - 8)
    values[0, 0] = 2**bits - 1
    expected = GREY_RGB.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(rgb_of(values, 'mono16'), expected)
    data = encoded(values, '.png')
    np.testing.assert_array_equal(rgb_from_compressed(data, 'mono16; png'), expected)


def test_the_brightest_image_so_far_tells_the_bit_depth():
    depth = BitDepth()
    dark, bright = np.array([[900]], np.uint16), np.array([[60000]], np.uint16)
    assert depth.upper_8(dark) == 900 >> 2
    assert depth.upper_8(bright) == 60000 >> 8 and depth.upper_8(dark) == 900 >> 8


def bayer_mosaic(colour, pattern: str, height=12, width=16) -> np.ndarray:
    """What a sensor with ``pattern`` (as in rggb: first row rg, second gb) sees of one colour."""
    value = dict(zip('rgb', colour))
    cell = np.array([value[letter] for letter in pattern]).reshape(2, 2)
    return np.tile(cell, (height // 2, width // 2)).astype(np.uint8)


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('colour', [(250, 0, 0), (0, 0, 250), (200, 100, 50)])
def test_a_bayer_mosaic_of_one_colour_gives_that_colour(pattern, colour, bits):
    mosaic = bayer_mosaic(colour, pattern)
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) << 8
    rgb = rgb_of(mosaic, f'bayer_{pattern}{bits}')
    np.testing.assert_array_equal(rgb[2:-2, 2:-2], np.broadcast_to(colour, (8, 12, 3)))


@pytest.mark.parametrize(('step', 'size'), [(24, 143), (23, 144), (24, 0)])
def test_a_raw_image_with_too_few_bytes_or_a_short_step_is_refused(step, size):
    with pytest.raises(ValueError, match='expected a step of 24'):
        rgb_from_raw(bytes(size), 8, 6, step, 'rgb8', False)


def test_a_raw_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match='image of 0x0 px'):
        rgb_from_raw(b'', 0, 0, 0, 'rgb8', False)


def encoded(pixels: np.ndarray, extension: str) -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def test_a_png_becomes_the_same_rgb():
    data = encoded(RGB[..., ::-1], '.png')
    np.testing.assert_array_equal(rgb_from_compressed(data, 'rgb8; png compressed bgr8'), RGB)


def test_a_jpeg_keeps_red_red():
    red = np.zeros((6, 8, 3), np.uint8)
    red[..., 2] = 250  # bgr
    rgb = rgb_from_compressed(encoded(red, '.jpg'), 'jpeg')
    assert rgb[..., 0].min() > 240
    assert rgb[..., 1:].max() < 12


def test_a_grey_png_becomes_three_equal_channels():
    np.testing.assert_array_equal(
        rgb_from_compressed(encoded(GREY, '.png'), 'mono8; png compressed '), GREY_RGB)


def test_a_compressed_bayer_mosaic_is_demosaicked():
    data = encoded(bayer_mosaic((250, 0, 0), 'gbrg'), '.png')
    rgb = rgb_from_compressed(data, 'bayer_gbrg8; png compressed ')
    np.testing.assert_array_equal(rgb[4, 4], (250, 0, 0))


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_compressed_image_without_its_end_is_refused(extension):
    data = encoded(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8), extension)
    assert rgb_from_compressed(data, 'x').shape == (60, 80, 3)
    for length in (len(data) // 2, len(data) - 20, 1, 0):
        with pytest.raises(ValueError, match='does not decode'):
            rgb_from_compressed(data[:length], 'x')


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('behind', [bytes(100_000), b'\xff\xd8\xff\xe0\x00\x10' * 1000])
def test_whatever_a_driver_leaves_behind_the_end_does_not_matter(extension, behind):
    data = encoded(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8), extension)
    np.testing.assert_array_equal(
        rgb_from_compressed(data + behind, 'x'), rgb_from_compressed(data, 'x'))


def test_the_end_of_a_thumbnail_is_not_that_of_the_jpeg():
    data = encoded(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8), '.jpg')
    thumbnail = encoded(np.zeros((8, 8, 3), np.uint8), '.jpg')
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    whole = data[:2] + segment + data[2:]
    assert rgb_from_compressed(whole, 'jpeg').shape == (60, 80, 3)
    with pytest.raises(ValueError, match='does not decode'):
        rgb_from_compressed(whole[:-20], 'jpeg')


def test_bytes_that_are_no_image_are_refused_with_their_format():
    with pytest.raises(ValueError, match="10 bytes with format 'jpeg' does not decode"):
        rgb_from_compressed(b'not a jpeg', 'jpeg')
