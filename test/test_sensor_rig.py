"""Messages become records with the place of their sensor; cameras keep their calibrations."""

import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

from array import array

from geometry_msgs.msg import TransformStamped
import numpy as np
from sensor_msgs.msg import CameraInfo, Image, NavSatFix
from tf2_msgs.msg import TFMessage

from crossview_localizer.config import CameraConfig, NodeConfig
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros.inputs import rectification_remark
from crossview_localizer.ros.sensor_rig import SensorRig

FOCAL_PX = {'front': 8.0, 'rear': 5.0}


def rig_of_two_cameras(**parameters) -> SensorRig:
    rig = SensorRig(NodeConfig(**parameters), CameraConfig())
    for frame, turn in (('front', 0.5), ('rear', -0.5)):
        mounting = TransformStamped(child_frame_id=frame)
        mounting.header.frame_id = 'base_link'
        q = mounting.transform.rotation
        q.x, q.y, q.z, q.w = -0.5, turn, -turn, 0.5
        rig.static_transforms.add(TFMessage(transforms=[mounting]))
    return rig


def info_of(frame: str) -> CameraInfo:
    focal_px = FOCAL_PX[frame]
    msg = CameraInfo(width=8, height=6, k=[focal_px, 0.0, 3.5, 0.0, focal_px, 2.5, 0.0, 0.0, 1.0])
    msg.header.frame_id = frame
    return msg


def image_of(frame: str, number: int) -> Image:
    pixels = np.random.default_rng(number).integers(0, 256, 144, np.uint8)
    msg = Image(height=6, width=8, step=24, encoding='rgb8', data=array('B', pixels.tobytes()))
    msg.header.frame_id = frame
    return msg


def test_two_cameras_on_one_topic_keep_their_calibrations_in_any_order():
    rig = rig_of_two_cameras()
    for number, (info, frame) in enumerate(
            [('front', 'front'), ('rear', 'front'), ('front', 'rear'), ('rear', 'rear')]):
        rig.camera_info = info_of(info)
        if number:
            image = rig.camera_image(image_of(frame, number))
            assert image.camera.fx_px == FOCAL_PX[frame]
            assert not rig.camera_info_remark(frame)


@pytest.mark.parametrize('parameters, is_said', [({}, True), ({'camera_frame': 'front'}, False)])
def test_camera_info_of_another_camera_is_remarked_on(parameters, is_said):
    rig = rig_of_two_cameras(**parameters)
    rig.camera_info = info_of('rear')
    assert rig.camera_image(image_of('front', 0)).camera.fx_px == FOCAL_PX['rear']
    remark = rig.camera_info_remark('front')
    assert ("of the frame 'front', camera_info is of 'rear'" in remark) is is_said


def test_of_the_positions_of_one_stamp_the_first_is_used():
    rig = SensorRig(NodeConfig(antenna_xyz_m=(0.0, 0.0, 0.0)), CameraConfig())
    frame = LocalFrame(51.76, -1.26)

    def fix_of(second: int, y_m: float, receiver: str = 'gnss'):
        msg = NavSatFix(position_covariance_type=0)
        msg.header.stamp.sec, msg.header.frame_id = second, receiver
        msg.latitude, msg.longitude = frame.latlon_from_xy(0.0, y_m)
        return rig.gnss_fix(msg, frame).y_m

    assert fix_of(1, 0.0) == fix_of(1, 0.0) == pytest.approx(0.0, abs=1e-6)
    for y_m in (4.0, 8.0):
        with pytest.raises(ValueError, match='a second position of the same stamp'):
            fix_of(1, y_m)
    assert fix_of(2, 20.0) == pytest.approx(20.0, abs=1e-6)
    assert fix_of(2, 21.0, 'gnss_rear') == pytest.approx(21.0, abs=1e-6)


@pytest.mark.parametrize(('topic', 'is_rectified', 'said'), [
    ('/front/image_rect_color', False, 'rectified: set image_is_rectified to true'),
    ('/front/image_raw/compressed', True, 'not rectified: set image_is_rectified to false'),
    ('/front/image_rect', True, ''), ('/front/image_raw', False, ''),
    ('/direct/image', False, '')])
def test_the_name_of_a_topic_that_contradicts_the_parameter_is_told(topic, is_rectified, said):
    remark = rectification_remark(topic, is_rectified)
    assert said in remark and bool(remark) is bool(said)
