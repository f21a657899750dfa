"""The demo in a small size, once through real ROS 2, and its parts on made-up numbers."""

import json
import os

import numpy as np
import pytest
import yaml

from benchmarks import ros_domain
from benchmarks.demo import demo, exchanged_images, ros_run, stages, summary
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

DURATION_S = 16.0
SEED = 3


# --- the whole


@pytest.fixture(scope='module')
def smoke(ros, shipped_weights, tmp_path_factory):
    """A short drive at a low resolution through the whole demo."""
    from crossview_localizer.evaluation import run_report
    folder = tmp_path_factory.mktemp('demo')
    parameters = yaml.safe_load(ros_run.PARAMETERS.read_text())
    # On a busy machine a late odometry must not turn into an extrapolated prior.
    parameters['/**']['ros__parameters']['odometry_wait_s'] = 1.0
    (folder / 'parameters.yaml').write_text(yaml.safe_dump(parameters))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ros_run, 'PARAMETERS', folder / 'parameters.yaml')
        patch.setattr(stages, 'IMAGE_SIZE_PX', (320, 240))
        patch.setattr(stages, 'RATE_HZ', 2.0)
        patch.setattr(stages, 'ORTHO_PX_M', 0.4)
        patch.setattr(ros_run, 'PLAY_RATE', 2.0)
        # For a machine that is busy with other things.
        patch.setattr(ros_run, 'STARTUP_S', 240.0)
        patch.setattr(ros_run, 'SHUTDOWN_S', 60.0)
        patch.setattr(run_report, 'DPI', dict.fromkeys(run_report.WIDTHS_IN, 30))
        # So short a drive has no picture 200 m away.
        patch.setattr(exchanged_images, 'BLIND_MIN_M', 15.0)
        demo.run_demo(folder / 'out', SEED, DURATION_S, stages.QUICK_CITY_M, shipped_weights[0],
                      keep=False, with_controls=True)
    return folder / 'out'


def test_the_summary_has_the_rows_and_numbers_that_are_promised(smoke):
    written = json.loads((smoke / 'summary.json').read_text())
    assert list(written) == [
        'gnss_only', 'odometry_only', 'prior', 'image_blind', 'refined', 'raw_correlation',
        'random_init', 'latency_ms', 'seconds', 'cpu_seconds', 'world_seed', 'weights', 'matcher',
        'notes']
    stamps_ns = pose_metrics.read_comparison(smoke / 'frames.csv').truth.stamps_ns
    assert len(stamps_ns) == 2.0 * DURATION_S
    for name in pose_metrics.ROWS:
        assert list(written[name]) == list(pose_metrics.METRICS)
        assert written[name]['n_expected'] == (stamps_ns > stamps_ns[0] + 5_000_000_000).sum()
    assert list(written['latency_ms']) == ['p50', 'p95', 'p99']
    assert written['world_seed'] == 9000 + SEED
    assert written['refined']['n'] >= 20
    assert written['random_init']['n'] >= 20
    assert written['gnss_only']['heading_median_deg'] is None
    assert written['odometry_only']['median_m'] < 3.0


def test_the_frames_give_the_numbers_of_the_summary(smoke):
    written = json.loads((smoke / 'summary.json').read_text())
    again = pose_metrics.metrics_by_row(pose_metrics.read_comparison(smoke / 'frames.csv'))
    for name in pose_metrics.ROWS:
        assert again[name] == pytest.approx(written[name])


def test_the_demo_ends_with_a_report_that_shows_its_controls(smoke):
    page = (smoke / 'report/index.html').read_text()
    pictures = {path.stem for path in (smoke / 'report').glob('*.png')}
    assert {'trajectory', 'errors', 'heatmaps', 'timeline', 'latency'} <= pictures
    assert 'Simulation: world seed 9003' in page
    assert 'raw correlation' in page and 'image blind' in page


def test_the_offline_localizer_gives_the_poses_of_the_node(smoke, shipped_weights):
    from crossview_localizer.bags import replay
    from crossview_localizer.bags.recorded_run import read_run
    from crossview_localizer.localizer import load_localizer
    from crossview_localizer.parameter_file import read_parameters

    node_config, config = read_parameters(ros_run.PARAMETERS)
    localizer = load_localizer(
        smoke / 'maps/trained.map', shipped_weights[0], config, onnx_path=node_config.onnx_path)
    results = list(replay.localize(smoke / 'bag', localizer, node_config))
    offline = replay.posteriors(results)
    recorded = read_run(smoke / 'run')
    node = recorded.poses
    assert np.isin(node.stamps_ns, offline.stamps_ns).all()
    # A dropped image is missing in the node's filter too: later poses may then differ.
    first_drop = np.flatnonzero(~np.isin(offline.stamps_ns, node.stamps_ns))
    same = slice(0, first_drop[0] if len(first_drop) else len(offline))
    assert len(offline.stamps_ns[same])
    assert node.poses[same] == pytest.approx(offline.poses[same], abs=1e-6)
    assert node.covariances[same] == pytest.approx(offline.covariances[same], abs=1e-6)
    # The node says of each image what the offline Localizer says, as far as the poses agree.
    said = recorded.outcomes(node.stamps_ns[same]).tolist()
    expected = {result.stamp_ns: result.outcome.name.lower() for result in results}
    assert said == [expected[stamp_ns] for stamp_ns in node.stamps_ns[same].tolist()]
    assert 'used' in said


def test_the_recording_holds_what_a_user_would_look_at(smoke):
    from crossview_localizer.bags.bag import Bag

    with Bag(smoke / 'run') as bag:
        found = bag.topics
    assert {'/crossview_localizer/pose', '/crossview_localizer/odometry', '/tf', '/diagnostics',
            '/crossview_localizer/geopose', ros_run.TRUTH_TOPIC} <= found


# --- its parts


def test_the_content_of_another_folder_is_never_cleared(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='not of an earlier demo'):
        demo.prepare(tmp_path, {'world_seed': 9001}, keep=False)
    assert (tmp_path / 'thesis.txt').exists()


def test_keep_leaves_the_drive_only_for_the_same_arguments(tmp_path):
    arguments = {'world_seed': 9001, 'duration_s': 130.0}
    demo.prepare(tmp_path / 'out', arguments, keep=False)
    (tmp_path / 'out/world').mkdir()
    (tmp_path / 'out/run').mkdir()
    demo.prepare(tmp_path / 'out', arguments, keep=True)
    assert (tmp_path / 'out/world').exists() and not (tmp_path / 'out/run').exists()
    demo.prepare(tmp_path / 'out', {**arguments, 'world_seed': 9002}, keep=True)
    assert not (tmp_path / 'out/world').exists()


def test_a_process_that_dies_ends_the_run_and_its_log_is_shown(tmp_path):
    with ros_run.RosRun('run', tmp_path) as run:
        run.start('node', 'crossview_localizer.no_such_module')
        with pytest.raises(ros_run.RosRunError, match='no_such_module'):
            run.wait_for_log('node', ['ready'], deadline_s=30.0)


def test_a_node_that_goes_on_without_its_map_ends_the_demo(tmp_path):
    run = ros_run.RosRun('run', tmp_path)
    run.log('node').write_text('[INFO] [1.0] [crossview_localizer]: loaded\n')
    run.require_no_error('node')
    run.log('node').write_text('[ERROR] [1.0] [crossview_localizer]: no map; the prior alone\n')
    with pytest.raises(ros_run.RosRunError, match='the prior alone'):
        run.require_no_error('node')


def test_dropped_images_are_counted_apart_from_those_before_the_start():
    stamps_ns = np.arange(100)
    assert '10 came before the filter had started and 0 were' in summary.count_missing(
        'refined', stamps_ns, Track.empty(np.arange(10, 100)))
    note = summary.count_missing(
        'refined', stamps_ns, Track.empty(np.setdiff1d(stamps_ns, [3, 50, 51, 52])))
    assert '0 came before' in note and '4 were dropped' in note and 'too busy' in note


def test_no_process_outlives_its_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with ros_run.RosRun('run', tmp_path) as run:
            run.start('player', 'http.server', '0', '--bind', '127.0.0.1')
            raise KeyboardInterrupt
    assert run.processes['player'].poll() is not None


def test_bad_arguments_end_with_one_line_and_no_traceback(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert demo.main(['--pool', str(tmp_path)]) == 2
    assert demo.main(['--duration-s', '1']) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith('python -m benchmarks.demo: error: ')


def test_a_pool_prints_the_table_over_the_frames_of_all_drives(tmp_path, capsys):
    for number in (1, 2):
        folder = tmp_path / f'drive{number}'
        folder.mkdir()
        pose_metrics.write_comparison(folder / 'frames.csv', made_up_drive())
        (folder / 'summary.json').write_text(json.dumps({
            'latency_ms': {'p50': 40.0, 'p99': 90.0}, 'seconds': {'total': 400.0},
            'world_seed': 9000 + number, 'weights': 'made_up'}))
    assert demo.main(['--pool', str(tmp_path / 'drive1'), str(tmp_path / 'drive2')]) == 0
    printed = capsys.readouterr().out
    evaluated = 2 * int(made_up_drive().evaluated.sum())
    assert f'{evaluated} / {evaluated}' in printed
    assert 'world seed 9001' in printed and 'world seed 9002' in printed
    assert 'refined coverage_95' in printed
    assert 'refined: 0 of 80 images without' in printed


def made_up_drive(count=80):
    """A turn; refined errs by 1 m along, 0.5 m across, the others by more."""
    stamps_ns = np.arange(count) * 250_000_000
    generator = np.random.default_rng(1)
    angle_rad = np.linspace(0.0, 1.5, count)
    true_poses = np.stack(
        (60.0 * np.sin(angle_rad), 60.0 - 60.0 * np.cos(angle_rad), angle_rad), axis=-1)
    truth = Track(stamps_ns, true_poses, np.full((count, 3, 3), np.nan))
    rows = {}
    for name, sigma_m in (('gnss_only', 4.0), ('prior', 3.0), ('image_blind', 3.0),
                          ('refined', 1.0)):
        wander_m = np.cumsum(generator.standard_normal((count, 3)), axis=0) * sigma_m / 6.0
        covariance = np.diag([sigma_m**2, sigma_m**2, 0.02**2])
        rows[name] = Track(
            stamps_ns, true_poses + wander_m * [1.0, 1.0, 0.005],
            np.tile(covariance, (count, 1, 1)))
    outcomes = {name: ['used'] * count for name in rows}
    return Comparison(truth, pose_metrics.settled(truth), rows, outcomes)


def test_the_goals_compare_medians_percentiles_and_coverage():
    def row(median_m, longitudinal_m, p95_m, coverage):
        return {'median_m': median_m, 'longitudinal_median_m': longitudinal_m, 'p95_m': p95_m,
                'coverage_95': coverage}

    lines = summary.goals({
        'refined': row(1.5, 2.0, 3.9, 0.86), 'prior': row(4.0, 3.0, 9.0, 0.9),
        'image_blind': row(2.9, 4.0, 9.0, 0.9), 'gnss_only': row(4.0, 3.0, 9.0, 0.4)})
    reached = [line.startswith('reached') for line in lines]
    # Medians: 1.5/4, 1.5/2.9; longitudinal: 2/3, 2/4; p95 3.9/4; coverage; prior/gnss.
    assert reached == [True, False, False, True, True, True, True]


def test_without_controls_the_summary_compares_with_the_prior_alone(capsys):
    rows = pose_metrics.metrics_by_row(made_up_drive())
    del rows['image_blind']
    summary.print_summary({
        **rows, 'world_seed': 9007, 'matcher': 'dense', 'weights': 'made_up', 'notes': ['a note'],
        'latency_ms': {'p50': 40.0}, 'seconds': {'total': 200.0},
        'cpu_seconds': {'total': 90.0}})
    printed = capsys.readouterr().out
    assert 'refined median_m / prior median_m' in printed and 'image_blind' not in printed


@pytest.mark.parametrize('arguments, duration_s, city_m, with_controls', [
    ([], 130.0, 500.0, False), (['--quick'], 30.0, 300.0, False),
    (['--quick', '--duration-s', '40', '--controls'], 40.0, 300.0, True)])
def test_a_quick_demo_is_a_short_drive_in_a_small_town(
        monkeypatch, tmp_path, arguments, duration_s, city_m, with_controls):
    calls = []
    monkeypatch.setattr(demo, 'run_demo', lambda *call: calls.append(call))
    assert demo.main([*arguments, '--out', str(tmp_path)]) == 0
    [(_, _, *sizes, _, _, controls)] = calls
    assert (sizes, controls) == ([duration_s, city_m], with_controls)


def brightness_bag(folder, first_level):
    """A drive whose k-th picture is as bright as first_level + 20 k; the bag and its stamps."""
    import cv2
    import robotcar_drive

    from crossview_localizer import robotcar_to_bag

    drive = robotcar_drive.write_drive(folder)
    for number, path in enumerate(sorted(drive.traversal.glob('stereo/centre/*.png'))):
        cv2.imwrite(str(path), np.full((48, 64), first_level + 20 * number, np.uint8))
    robotcar_to_bag.main(drive.arguments(folder / 'bag', '--crop', 'none'))
    return folder / 'bag', np.array(drive.image_us) * 1000


def brightness(message) -> int:
    import cv2

    return round(cv2.imdecode(np.asarray(message.data), cv2.IMREAD_GRAYSCALE).mean())


@pytest.mark.parametrize('apart_m', [60.0, 30.0])
def test_the_blind_bag_has_the_same_messages_with_pictures_from_far_away(ros, tmp_path, apart_m):
    from crossview_localizer.bags.bag import read_messages

    bag, stamps_ns = brightness_bag(tmp_path / 'drive', 20)
    elsewhere_bag, _ = brightness_bag(tmp_path / 'elsewhere', 30)
    along_m = apart_m * np.arange(len(stamps_ns))
    truth = Track.from_poses(stamps_ns, [Pose2D(x_m, 0.0, 0.0) for x_m in along_m])
    note = exchanged_images.exchange_images(bag, tmp_path / 'blind', truth, elsewhere_bag, seed=5)

    before, after = (list(read_messages(path)) for path in (bag, tmp_path / 'blind'))
    assert [entry[:2] for entry in before] == [entry[:2] for entry in after]
    levels = [brightness(msg) for topic, _, msg in after if topic == ros_run.IMAGE_TOPIC]
    for x_m, level in zip(along_m, levels):
        if level % 20 == 0:
            assert abs(along_m[level // 20 - 1] - x_m) >= 200.0
        else:
            assert level % 20 == 10
            assert max(x_m, along_m[-1] - x_m) < 200.0
    # 30 m apart, the images 3 to 6 of ten have none that is 200 m away.
    assert sum(level % 20 == 10 for level in levels) == (4 if apart_m == 30.0 else 0)
    assert ('for 4 the drive has none' in note) == (apart_m == 30.0)


def test_runs_at_the_same_time_never_share_a_domain(monkeypatch):
    monkeypatch.setattr(ros_domain, 'MARK', f'test_{os.getpid()}')
    taken = [ros_domain.lone_domain() for _ in range(101)]
    assert {domain for domain, _ in taken} == set(range(1, 102))
    with pytest.raises(OSError, match='taken by other runs'):
        ros_domain.lone_domain()
    domain, mark = taken[40]
    mark.close()
    again, last = ros_domain.lone_domain()
    assert again == domain
    for _, held in (*taken, (0, last)):
        held.close()
