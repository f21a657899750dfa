"""Files that are truncated, damaged or absurd: a clear error, no hang, no memory blow-up.

A fuzzer (hypothesis) changes the bytes of a good file of each kind and hands it to its reader.
``make fuzz`` does so for longer, with other changes every time; here the changes are always the
same ones.  More than ``MEMORY_BYTES`` beyond what is in use is refused by the system.
"""

from contextlib import contextmanager
import os
from pathlib import Path
import re
import resource
import struct
import zipfile

import cv2
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

pytest.importorskip('rclpy')
pytest.importorskip('hypothesis')

from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from crossview_localizer.bags import robotcar, robotcar_images
from crossview_localizer.bags.bag import read_messages
from crossview_localizer.bags.route_file import read_route
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.networks.checkpoint import read_model_config, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import ModelConfig
from crossview_localizer.parameter_file import read_parameters
from crossview_localizer.ros import saved_pose

LONG = os.environ.get('FUZZ_EXAMPLES')
MEMORY_BYTES = 3 * 2**30
EXAMPLES = int(LONG or 40)
FRAME = LocalFrame(51.76, -1.26)


# --- a good file of each kind, and what reads all of it


def good_map(folder: Path) -> Path:
    import torch
    grid = MapGrid(4, 5, 2.0, 0.0, 6.0)
    EmbeddingMap(
        FRAME, grid, torch.arange(20).reshape(4, 5),
        torch.nn.functional.normalize(torch.ones(20, 8), dim=1).half(), 'a' * 64, 40.0, 64,
        ('a.tif',), np.full((6, 10, 3), 90, np.uint8),
        MapGrid(6, 10, 1.0, 0.0, 6.0)).save(folder / 'good.map.zip')
    return folder / 'good.map.zip'


def good_map_header(folder: Path) -> Path:
    with zipfile.ZipFile(good_map(folder)) as packed:
        packed.extractall(folder / 'good.map')
    return folder / 'good.map/zarr.json'


def read_map(path: Path) -> None:
    found = EmbeddingMap.open(path)
    found.window(PoseEstimate(1, Pose2D(4.0, 2.0, 0.0), np.eye(3)), 15.0)
    found.orthophoto()


def good_weights(folder: Path) -> Path:
    path = folder / 'good.safetensors'
    network = random_network(ModelConfig(channels=8, heads=4, hidden=4, view_px=64), 0)
    save_network(network, path, {'seed': 0})
    return path


def good_tif(folder: Path) -> Path:
    path = folder / 'good.tif'
    with rasterio.open(
        path, 'w', driver='GTiff', height=64, width=64, count=3, dtype='uint8',
        crs='EPSG:32630', compress='deflate', tiled=True, blockxsize=32, blockysize=32,
        transform=Affine(0.5, 0.0, 620000.0, 0.0, -0.5, 5736000.0),
    ) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8))
    return path


def read_tif(path: Path) -> None:
    imagery = Imagery.open(path)
    x_min, y_min, x_max, y_max = imagery.bounds_m
    imagery.crop((x_min + x_max) / 2.0, (y_min + y_max) / 2.0, 32.0, 64)


def good_csv(folder: Path) -> Path:
    path = folder / 'gps.csv'
    rows = [f'{1400000000000000 + 200000 * k},9,{51.76 + 1e-6 * k},-1.26,60.0,5,5,8'
            for k in range(20)]
    header = ('timestamp,num_satellites,latitude,longitude,altitude,latitude_sigma,'
              'longitude_sigma,altitude_sigma')
    path.write_text('\n'.join([header, *rows]) + '\n')
    return path


def read_csv(path: Path) -> None:
    robotcar.read_gps(path)
    read_route(path)


def good_lut(folder: Path) -> Path:
    (folder / 'stereo_narrow_left.txt').write_text(
        '100 100 8 6\n' + '\n'.join(' '.join(map(str, row)) for row in np.eye(4)) + '\n')
    path = folder / 'stereo_narrow_left_distortion_lut.bin'
    v, u = np.mgrid[0:12, 0:16]
    np.stack((u.ravel(), v.ravel())).astype('<f8').tofile(path)
    return path


def read_lut(path: Path) -> None:
    intrinsics = robotcar_images.read_intrinsics(path.parent)
    robotcar_images.fit_plumb_bob(intrinsics, 16, 12)


def good_yaml(folder: Path) -> Path:
    path = folder / 'parameters.yaml'
    path.write_text((Path(__file__).parent.parent / 'config/robotcar.yaml').read_text())
    return path


def good_saved_pose(folder: Path) -> Path:
    import time
    path = folder / 'saved.json'
    saved_pose.SavedPose(
        time.time(), 10**18, (51.76, -1.26), Pose2D(1.0, 2.0, 0.3), Pose2D(0.0, 0.0, 0.0),
        np.eye(3)).save(path)
    return path


def write_bag(path: Path, storage: StoragePlugin) -> Path:
    store = typestore_with_geographic_msgs()
    types = store.types
    stamp = types['builtin_interfaces/msg/Time'](sec=1_400_000_000, nanosec=0)
    header = types['std_msgs/msg/Header'](stamp=stamp, frame_id='gnss_antenna')
    fix = types['sensor_msgs/msg/NavSatFix'](
        header=header, status=types['sensor_msgs/msg/NavSatStatus'](status=0, service=1),
        latitude=51.76, longitude=-1.26, altitude=60.0, position_covariance=np.ones(9),
        position_covariance_type=2)
    jpeg = cv2.imencode('.jpg', np.full((6, 8, 3), 90, np.uint8))[1]
    image = types['sensor_msgs/msg/CompressedImage'](
        header=header, format='jpeg', data=jpeg.ravel())
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic, msg in (('/gnss/fix', fix), ('/camera/image/compressed', image)):
            connection = writer.add_connection(topic, msg.__msgtype__, typestore=store)
            for k in range(5):
                writer.write(connection, 1_400_000_000 * 10**9 + k * 10**8,
                             store.serialize_cdr(msg, msg.__msgtype__))
    return path


def read_bag_of(path: Path) -> None:
    """The bag whose one file was changed."""
    for _ in read_messages(path.parent):
        pass
    read_route(path.parent)


def good_mcap(folder: Path) -> Path:
    return next(write_bag(folder / 'bag', StoragePlugin.MCAP).glob('*.mcap'))


def good_db3(folder: Path) -> Path:
    return next(write_bag(folder / 'bag', StoragePlugin.SQLITE3).glob('*.db3'))


def good_bag_metadata(folder: Path) -> Path:
    return write_bag(folder / 'bag', StoragePlugin.MCAP) / 'metadata.yaml'


def read_time_list(path: Path) -> None:
    robotcar_images.list_stereo_images(path.parent)


KINDS = {
    'map, zipped': (good_map, read_map),
    'map, header': (good_map_header, lambda path: read_map(path.parent)),
    'GeoTIFF': (good_tif, read_tif),
    'csv': (good_csv, read_csv),
    'distortion table': (good_lut, read_lut),
    'parameter file': (good_yaml, read_parameters),
    'saved pose': (good_saved_pose, lambda path: saved_pose.load_saved_pose(path, 1e9)),
    'bag, mcap': (good_mcap, read_bag_of),
    'bag, sqlite3': (good_db3, read_bag_of),
    'bag, metadata': (good_bag_metadata, read_bag_of),
}


# --- the fuzzer


POSITION = st.floats(0.0, 1.0)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just('cut'), POSITION, st.just(b'')),
        st.tuples(st.just('overwrite'), POSITION, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just('overwrite'), POSITION, st.sampled_from([
            b'\xff' * 8, b'\x00' * 8, b'\xff\xff\xff\x7f', b'nan', b'-1', b'1e999', b'9' * 12,
            struct.pack('<d', float('nan'))])),
        st.tuples(st.just('insert'), POSITION, st.binary(min_size=1, max_size=12)),
        st.tuples(st.just('repeat'), POSITION, st.just(b'')),
    ), min_size=1, max_size=4)


def edited(data: bytes, edits) -> bytes:
    for kind, position, content in edits:
        at = int(position * len(data))
        if kind == 'cut':
            data = data[:at]
        elif kind == 'overwrite':
            data = data[:at] + content + data[at + len(content):]
        elif kind == 'insert':
            data = data[:at] + content + data[at:]
        else:
            data = data[:at] + data[at // 2:]
    return data


@contextmanager
def limited_memory():
    """A larger allocation is a MemoryError, which no reader may let through."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(good: Path, read, examples: int) -> None:
    whole = good.read_bytes()
    read(good)

    @settings(
        max_examples=examples, derandomize=not LONG, database=None, deadline=None,
        suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def damaged_files_are_an_error_or_read(edits):
        good.write_bytes(edited(whole, edits))
        try:
            read(good)
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) <= 1, f'more than a line: {error}'

    with limited_memory():
        damaged_files_are_an_error_or_read()


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize('kind', KINDS)
def test_a_damaged_file_is_read_or_is_a_clear_error(kind, tmp_path):
    make, read = KINDS[kind]
    fuzz(make(tmp_path), read, EXAMPLES)


@pytest.mark.timeout(3600 if LONG else 120)
def test_damaged_weights_are_read_or_are_a_clear_error(tmp_path):
    path = good_weights(tmp_path)
    # Headers only: the tensors behind are numbers, whatever their bytes.
    size, = struct.unpack('<Q', path.read_bytes()[:8])
    whole, header = path.read_bytes(), slice(0, 8 + size)

    @settings(max_examples=EXAMPLES, derandomize=not LONG, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def damaged_headers_are_an_error_or_read(edits):
        path.write_bytes(edited(whole[header], edits) + whole[header.stop:])
        try:
            read_model_config(path)
        except (ValueError, OSError):
            pass

    with limited_memory():
        damaged_headers_are_an_error_or_read()


# --- absurd ones


def refused(read, path: Path) -> str:
    with limited_memory(), pytest.raises((ValueError, OSError)) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def sparse_tif(folder: Path, **changes) -> Path:
    """Nothing is written for blocks without data."""
    path = folder / 'sparse.tif'
    profile = {
        'driver': 'GTiff', 'height': 64, 'width': 64, 'count': 3, 'dtype': 'uint8',
        'crs': 'EPSG:32630', 'transform': Affine(0.5, 0.0, 620000.0, 0.0, -0.5, 5736000.0),
        'tiled': True, 'blockxsize': 512, 'blockysize': 512, 'sparse_ok': True, 'bigtiff': 'yes',
        **changes}
    with rasterio.open(path, 'w', **profile):
        pass
    return path


def test_a_raster_of_1e9_pixels_is_read_in_parts(tmp_path):
    path = sparse_tif(tmp_path, height=32000, width=32000)
    with limited_memory():
        read_tif(path)


def test_a_raster_of_1e9_pixels_in_four_blocks_is_refused(tmp_path):
    path = sparse_tif(
        tmp_path, height=32000, width=32000, blockxsize=16384, blockysize=16384)
    assert 'blocks of' in refused(read_tif, path)


def test_imagery_over_more_than_the_plane_is_refused(tmp_path):
    path = sparse_tif(
        tmp_path, height=90_000, width=90_000,
        transform=Affine(5.0, 0.0, 620000.0, 0.0, -5.0, 5736000.0))
    assert 'km from the map origin' in refused(read_tif, path)


@pytest.mark.parametrize('transform', [
    Affine(float('nan'), 0.0, 620000.0, 0.0, -0.5, 5736000.0),
    Affine(0.0, 0.0, 620000.0, 0.0, 0.0, 5736000.0),
    Affine(0.5, 0.0, float('inf'), 0.0, -0.5, 5736000.0),
    Affine(1e300, 0.0, 0.0, 0.0, -1e300, 0.0),
])
def test_a_transform_that_is_none_is_refused(tmp_path, transform):
    refused(read_tif, sparse_tif(tmp_path, transform=transform))


def test_imagery_in_the_wrong_reference_system_is_refused(tmp_path):
    # UTM metres declared to be degrees.
    refused(read_tif, sparse_tif(tmp_path, crs='EPSG:4326'))


def test_a_map_that_claims_a_huge_lattice_is_refused(tmp_path):
    path = good_map_header(tmp_path)
    path.write_text(path.read_text().replace('"rows": 4', '"rows": 4000000000'))
    assert 'damaged' in refused(lambda path: read_map(path.parent), path)


def test_a_parameter_file_runs_no_code(tmp_path):
    path = tmp_path / 'parameters.yaml'
    marker = tmp_path / 'ran'
    path.write_text(f"!!python/object/apply:os.system ['touch {marker}']\n")
    refused(read_parameters, path)
    assert not marker.exists()


def test_a_parameter_file_that_multiplies_itself_is_refused(tmp_path):
    # Each line holds the one before it ten times: 1e9 texts, were they ever written out.
    lines = ['a0: &a0 [x]'] + [
        f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 10)}]' for k in range(1, 10)]
    path = tmp_path / 'parameters.yaml'
    path.write_text('/**:\n  ros__parameters:\n' + ''.join(f'    {line}\n' for line in lines))
    assert 'aliases' in refused(read_parameters, path)


def test_no_module_unpickles():
    repository = Path(__file__).parent.parent
    for path in [*repository.glob('crossview_localizer/**/*.py'),
                 *repository.glob('training/**/*.py'), *repository.glob('benchmarks/**/*.py')]:
        text = path.read_text()
        assert not re.search(
            r'allow_pickle=True|pickle\.load|yaml\.load\(|(?<![\w.])(eval|exec)\(', text), path
        for call in re.findall(r'torch\.load\([^)]*\)', text):
            assert 'weights_only=True' in call, path
