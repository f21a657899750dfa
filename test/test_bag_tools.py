"""play_bag and record_bag: what goes in comes out, through real DDS and separate processes."""

from array import array
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')

from geographic_msgs.msg import GeoPoseStamped
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg, get_typestore, Stores
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from crossview_localizer.bags.installed_types import register_installed_type
from crossview_localizer.bags.player import publisher_qos

START_NS = 1_400_000_000_000_000_000
NO_TIME = QosTime(0, 0)


def qos(reliable: bool = True, latched: bool = False) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST, 10,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        NO_TIME, NO_TIME, QosLiveliness.AUTOMATIC, NO_TIME, False)


def msgtype_of(message) -> str:
    package, _, _ = type(message).__module__.split('.', 2)
    return f'{package}/msg/{type(message).__name__}'


def write_bag(path, messages, profiles=None, storage=StoragePlugin.MCAP):
    """messages: (topic, seconds from START_NS, message); profiles: topic -> offered profile."""
    typestore = get_typestore(Stores.EMPTY)
    connections = {}
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic, time_s, message in messages:
            if topic not in connections:
                register_installed_type(typestore, msgtype_of(message))
                connections[topic] = writer.add_connection(
                    topic, msgtype_of(message), typestore=typestore,
                    offered_qos_profiles=[(profiles or {}).get(topic, qos())])
            writer.write(
                connections[topic], START_NS + round(time_s * 1e9), serialize_message(message))
    return path


def read_bag(path) -> dict[str, list[tuple[int, bytes]]]:
    messages = {}
    with Reader(path) as reader:
        for connection, stamp_ns, data in reader.messages():
            messages.setdefault(connection.topic, []).append((stamp_ns, data))
    return messages


def strings(count: int, period_s: float, topic: str = '/words', prefix: str = ''):
    return [(topic, i * period_s, String(data=f'{prefix}{i}')) for i in range(count)]


def words(messages, topic='/words') -> list[str]:
    return [deserialize_message(data, String).data for _, data in messages.get(topic, [])]


def command(tool: str, *args) -> list[str]:
    return [sys.executable, '-m', f'crossview_localizer.{tool}', *map(str, args)]


def run_player(*args) -> subprocess.CompletedProcess:
    return subprocess.run(
        command('play_bag', *args), capture_output=True, text=True, timeout=240)


@pytest.fixture
def recorder(tmp_path):
    """Start record_bag; call the result's `finish` to interrupt it and read what it wrote."""
    processes = []

    class Recorder:
        def __init__(self, *args):
            self.path = tmp_path / f'recorded{len(processes)}'
            self.process = subprocess.Popen(
                command('record_bag', '-o', self.path, *args),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            processes.append(self.process)

        def finish(self):
            self.process.send_signal(signal.SIGINT)
            output, _ = self.process.communicate(timeout=120)
            assert self.process.returncode == 0, output
            return read_bag(self.path)

    yield Recorder
    for process in processes:
        process.kill()
        process.communicate()


def test_eighty_large_images_pass_from_bag_to_bag_whole(tmp_path, recorder, wait_until):
    height, width = 960, 1280
    noise = np.random.default_rng(0).integers(0, 256, height * width * 3, np.uint8).tobytes()

    def images():
        for i in range(80):
            message = Image(height=height, width=width, encoding='bgr8', step=3 * width)
            # A different picture each: the same noise, shifted.
            message.data = array('B', noise[i * 1000:] + noise[:i * 1000])
            yield '/camera/image', i / 16, message

    bag = write_bag(tmp_path / 'images', images())
    recording = recorder('--topics', '/camera/image')
    played = run_player(bag, '--wait-subscribers', '/camera/image')
    assert played.returncode == 0, played.stderr
    # Once interrupted, the recorder writes for 3 s at most what it is behind with.
    wait_until(lambda: sum(file.stat().st_size for file in recording.path.glob('*.mcap'))
               >= 80 * len(noise))
    recorded = recording.finish()['/camera/image']
    assert [data for _, data in recorded] == [data for _, data in read_bag(bag)['/camera/image']]
    assert len(recorded) == 80


@pytest.mark.parametrize('storage', StoragePlugin)
def test_words_keep_their_order_and_pace(tmp_path, recorder, storage):
    bag = write_bag(tmp_path / 'bag', strings(21, 0.1), storage=storage)
    recording = recorder('--topics', '/words')
    played = run_player(bag, '--rate', 2, '--wait-subscribers', '/words')
    assert '21 messages played' in played.stdout, played.stderr
    recorded = recording.finish()
    assert words(recorded) == [str(i) for i in range(21)]
    stamps_s = np.array([stamp_ns for stamp_ns, _ in recorded['/words']]) * 1e-9
    # Twice as fast; a busy machine may hold up some of them.
    assert 0.025 < np.median(np.diff(stamps_s)) < 0.075


def test_clock_ticks_in_bag_time_at_its_rate(tmp_path, recorder):
    # The recorded clock, of another rate, is not played beside it.
    bag = write_bag(tmp_path / 'bag', [*strings(2, 8.0), ('/clock', 1.0, Clock())])
    recording = recorder('--topics', '/clock', '/words')
    # Nothing waits for the recorder of /clock but the delay.
    run_player(bag, '--clock', 100, '--rate', 4, '--delay', 2, '--wait-subscribers', '/words')
    clocks = [deserialize_message(data, Clock).clock for _, data in recording.finish()['/clock']]
    stamps_ns = np.array([c.sec * 10**9 + c.nanosec for c in clocks])
    assert np.all(np.diff(stamps_ns) > 0)
    assert START_NS <= stamps_ns[0] < START_NS + 4e9
    assert START_NS + 7.9e9 < stamps_ns[-1] < START_NS + 12e9
    # 2 s of wall time at 100 Hz, less what a busy machine leaves out.
    assert 60 < len(clocks) <= 204
    assert np.median(np.diff(stamps_ns)) == pytest.approx(4 * 10e6, rel=0.2)


def test_recording_in_simulated_time_has_the_stamps_of_the_bag(tmp_path, recorder):
    latched = ('/tf_static', 0.0, TFMessage())
    bag = write_bag(
        tmp_path / 'bag', [latched, *strings(11, 0.1)], {'/tf_static': qos(latched=True)})
    recording = recorder('--use-sim-time', '--topics', '/words', '/tf_static')
    run_player(bag, '--clock', '--delay', 2, '--wait-subscribers', '/words', '/tf_static')
    recorded = recording.finish()
    stamps_s = np.array([stamp_ns - START_NS for stamp_ns, _ in recorded['/words']]) * 1e-9
    # The bag's time and this machine's are years apart.
    np.testing.assert_allclose(stamps_s, np.arange(11) / 10, atol=3.0)
    assert np.median(np.diff(stamps_s)) == pytest.approx(0.1, abs=0.05)
    assert abs(recorded['/tf_static'][0][0] - START_NS) < 3e9


@pytest.mark.parametrize('recorded', [[], [qos()], [qos(reliable=False)], [qos(latched=True)]])
def test_static_transforms_are_latched_however_they_were_recorded(recorded):
    connection = SimpleNamespace(
        topic='/tf_static', msgtype='tf2_msgs/msg/TFMessage', msgcount=3,
        ext=SimpleNamespace(offered_qos_profiles=recorded))
    profile = publisher_qos([connection], 'recorded')
    assert profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
    assert profile.reliability is ReliabilityPolicy.RELIABLE


def test_a_latched_topic_is_published_although_the_start_is_after_it(tmp_path, recorder):
    first, second = TFMessage(), TFMessage()
    bag = write_bag(
        tmp_path / 'bag',
        [('/tf_static', 0.0, first), ('/tf_static', 0.1, second), *strings(11, 0.1)],
        {'/tf_static': qos(latched=True)})
    recording = recorder('--topics', '/words', '/tf_static')
    run_player(bag, '--start-offset', 0.65, '--wait-subscribers', '/words', '/tf_static')
    recorded = recording.finish()
    assert words(recorded) == ['7', '8', '9', '10']
    assert len(recorded['/tf_static']) == 2


def test_only_what_was_asked_for_is_played_and_under_its_new_name(tmp_path, recorder):
    bag = write_bag(
        tmp_path / 'bag', [*strings(20, 0.05), ('/other', 0.95, String(data='no'))])
    recording = recorder('--regex', '/front/.*|/other')
    run_player(
        bag, '--topics', '/words', '--playback-duration', 0.52, '--wait-subscribers',
        '/front/words', '--ros-args', '--remap', '/words:=/front/words')
    recorded = recording.finish()
    assert words(recorded, '/front/words') == [str(i) for i in range(11)]
    assert '/other' not in recorded


def test_a_topic_of_unknown_type_is_left_out_and_named(tmp_path):
    typestore = get_typestore(Stores.EMPTY)
    typestore.register(get_types_from_msg('uint8 value', 'nowhere_msgs/msg/Thing'))
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        thing = writer.add_connection('/thing', 'nowhere_msgs/msg/Thing', typestore=typestore)
        register_installed_type(typestore, 'std_msgs/msg/String')
        word = writer.add_connection('/words', 'std_msgs/msg/String', typestore=typestore)
        writer.write(thing, START_NS, b'\0\1\0\0\7')
        writer.write(word, START_NS, serialize_message(String(data='a')))
    played = run_player(tmp_path / 'bag')
    assert played.returncode == 0
    assert '1 messages played' in played.stdout
    assert '/thing is left out' in played.stderr and 'nowhere_msgs/msg/Thing' in played.stderr


def test_recorded_topics_carry_type_hash_definition_and_offered_qos(tmp_path, recorder):
    bag = write_bag(
        tmp_path / 'bag', [('/geopose', i * 0.05, GeoPoseStamped()) for i in range(60)],
        {'/geopose': qos(reliable=False)})
    recording = recorder('--topics', '/geopose')
    run_player(bag, '--wait-subscribers', '/geopose')
    assert recording.finish()['/geopose']  # best effort: not every one need arrive
    with Reader(recording.path) as reader:
        (connection,) = reader.connections
    assert connection.msgtype == 'geographic_msgs/msg/GeoPoseStamped'
    assert connection.digest.startswith('RIHS01_a8e603c050fa992a')
    assert 'MSG: geographic_msgs/GeoPoint\n' in connection.msgdef.data
    (profile,) = connection.ext.offered_qos_profiles
    assert profile.reliability is QosReliability.BEST_EFFORT
    assert profile.durability is QosDurability.VOLATILE


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_two_interrupts_end_a_looping_player_without_an_error(tmp_path, number):
    bag = write_bag(tmp_path / 'bag', strings(5, 0.05))
    player = subprocess.Popen(
        command('play_bag', bag, '--loop', '--clock'), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    rclpy.init()
    try:
        node = rclpy.create_node('listener')
        heard = []
        node.create_subscription(String, '/words', lambda m: heard.append(m.data), 10)
        deadline_s = time.monotonic() + 120
        while heard.count('0') < 2 and time.monotonic() < deadline_s:
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        rclpy.shutdown()
    assert heard.count('0') >= 2, 'the bag was not played again'
    player.send_signal(number)
    player.send_signal(number)
    output, errors = player.communicate(timeout=60)
    assert player.returncode == 0 and 'messages played' in output
    assert 'Traceback' not in errors


def test_a_second_interrupt_in_the_handling_of_the_first_does_not_lock_it():
    script = """
import signal, sys
from crossview_localizer.ros.interrupts import stop_on_interrupt
stop = stop_on_interrupt()
interrupts = 0
def interrupt(frame, event, argument):
    global interrupts
    interrupts += 1
    signal.raise_signal(signal.SIGINT)
    return interrupt
sys.settrace(interrupt)     # one at each line of what runs from here
stop.wait(0.01)
signal.raise_signal(signal.SIGTERM)
sys.settrace(None)
print(interrupts, stop.is_set())
"""
    ended = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=20)
    interrupts, is_set = ended.stdout.split()
    assert int(interrupts) > 5 and is_set == 'True'


@pytest.fixture(scope='module')
def small_bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('small') / 'bag', strings(5, 0.1))


def test_days_without_a_message_are_not_waited_for(tmp_path):
    messages = [*strings(2, 0.01), *(
        (topic, 1e6 + time_s, message) for topic, time_s, message in strings(3, 0.01))]
    done = run_player(write_bag(tmp_path / 'bag', messages), '--clock')
    assert done.returncode == 0 and '5 messages played' in done.stdout
    assert '1000000 s without a message are left out' in done.stderr


@pytest.mark.parametrize(('options', 'said'), [
    (['--topics', '/nothing'], 'no topic /nothing; it has /words'),
    (['--start-offset', '9'], 'past the end of the bag (0.4 s long)'),
    (['--rate', '0'], 'expected a number above 0, found 0'),
    (['--wait-subscribers', '/words', '--wait-timeout', '0.3'], 'no subscriber on /words'),
    (['--wait-subscribers', '/nothing'], 'not waited for: /nothing'),
])
def test_the_player_refuses_in_one_line(small_bag, options, said, capfd, signal_handlers):
    from crossview_localizer.play_bag import main
    try:
        code = main([str(small_bag), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert said in capfd.readouterr().err.strip().splitlines()[-1]


def test_the_player_refuses_what_is_no_bag(small_bag, tmp_path, capfd, signal_handlers):
    from crossview_localizer.play_bag import main
    cut = tmp_path / 'cut.mcap'
    (whole,) = small_bag.glob('*.mcap')
    cut.write_bytes(whole.read_bytes()[:50])
    empty = write_bag(tmp_path / 'empty', [])
    for path in (tmp_path / 'nothing', tmp_path, cut, empty):
        assert main([str(path)]) == 2
        errors = capfd.readouterr().err.strip().splitlines()
        assert errors[-1].startswith('play_bag: error: ') and 'Traceback' not in errors[0]


def test_the_recorder_never_writes_over_a_bag(small_bag, capfd, signal_handlers):
    from crossview_localizer.record_bag import main
    before = read_bag(small_bag)
    assert main(['-o', str(small_bag), '--all']) == 2
    assert 'exists already' in capfd.readouterr().err
    assert read_bag(small_bag) == before
