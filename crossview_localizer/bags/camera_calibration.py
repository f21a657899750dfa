"""Camera height and pitch, and the offset of the imagery, from a recorded drive."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
import math
from pathlib import Path

from tqdm import tqdm

from crossview_localizer.bags.bag import BagError
from crossview_localizer.bags.drive import missing_input, read_drive, read_posed_images
from crossview_localizer.bags.events import read_events
from crossview_localizer.bags.replay import feed
from crossview_localizer.bags.topics import Topics
from crossview_localizer.camera.motion import CameraMotion, MIN_PAIRS, MotionFit
from crossview_localizer.config import CameraConfig, LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.localizer import load_localizer, Localizer
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.imagery_offset import (
    fit_offset,
    MIN_FRAMES,
    Offset,
    OffsetVolumes,
    PosedImage,
)

SURE_SIGMAS = 2.0            # a smaller change is not significant
SETTLED_SIGMA_M = 1.5        # filtered poses that are less certain are not used
MOTION_IMAGES = 1200         # at most so many images are compared for height and pitch


def fit_motion(bag: Path, node_config: NodeConfig, config: LocalizerConfig,
               topics: Topics | None = None) -> MotionFit | None:
    """Fit height and pitch to the images and odometry of a bag; None if too little moves.

    Raises ValueError or OSError if the bag cannot be used.
    """
    frame = LocalFrame(0.0, 0.0)  # positions on Earth do not matter here
    topics = replace(topics or Topics(), gnss='', gnss_velocity='', truth='')
    drive = read_drive(bag, frame, node_config, topics)
    if problem := missing_input(bag, drive, topics):
        raise BagError(f'{problem} (height and pitch need images and odometry)')
    motion = CameraMotion(drive.odometry)
    images = (event for event in read_events(bag, frame, node_config, config, topics)
              if isinstance(event, CameraImage))
    total = min(MOTION_IMAGES, len(drive.image_stamps_ns))
    for image in tqdm(islice(images, total), desc='height and pitch', total=total, unit=' images'):
        motion.add(image)
    return motion.fit(config.camera.height_m)


def fit_offset_of_bag(bag: Path, map_path: Path, weights: Path, node_config: NodeConfig,
                      config: LocalizerConfig, filtered: bool, spacing_m: float, limit: int,
                      device: str = 'cpu', topics: Topics | None = None) -> Offset:
    """Fit the offset of the imagery with the ground truth of a bag.

    With ``filtered``, or if the bag holds no truth, the poses are those of the filter.
    Raises ValueError or OSError if bag, map or weights cannot be used.
    """
    localizer = load_localizer(map_path, weights, config, device)
    if not isinstance(localizer.matcher, DenseMatcher):
        raise ValueError(f'{weights} are of a tile matcher; expected weights of the dense matcher')
    topics = topics or Topics()
    truth = read_drive(bag, localizer.frame, node_config, topics).truth
    filtered = filtered or not len(truth)
    posed = (_filtered_images(bag, localizer, node_config, topics) if filtered
             else read_posed_images(bag, localizer.frame, truth, node_config, config, topics))
    volumes = OffsetVolumes(localizer.matcher, localizer.embedding_map, config)
    frames: list[PosedImage] = []
    without_pose = off_the_map = 0
    for image, pose in tqdm(posed, desc='reading', unit=' images'):
        if pose is None:
            without_pose += 1
        elif frames and _distance_m(pose, frames[-1].pose) < spacing_m:
            continue
        elif not volumes.covers(pose):
            off_the_map += 1
        else:
            frames.append(PosedImage(image, pose))
        if len(frames) >= limit:
            break
    if len(frames) < MIN_FRAMES:
        raise BagError(
            f'{len(frames)} frames of {bag} have a known pose on the map ({without_pose} more '
            f'have no known pose, {off_the_map} lie off the map); expected at least '
            f'{MIN_FRAMES}: drive farther, or build a wider map')
    found = fit_offset(frames, volumes,
                       progress=lambda items: tqdm(items, desc='matching', unit=' frames'))
    return replace(found, filtered=filtered, without_pose=without_pose)


def _filtered_images(
    bag: Path, localizer: Localizer, node_config: NodeConfig, topics: Topics,
) -> Iterator[tuple[CameraImage, Pose2D | None]]:
    """The images of a bag with the poses of the filter; None if they are not certain enough."""
    topics = replace(topics, truth='')
    for event in read_events(bag, localizer.frame, node_config, localizer.config, topics):
        localization = feed(localizer, event)
        if localization is not None:
            estimate = localization.posterior
            certain = estimate is not None and (
                estimate.covariance[0, 0] + estimate.covariance[1, 1] <= SETTLED_SIGMA_M**2)
            yield event, estimate.pose if certain else None


def _distance_m(a: Pose2D, b: Pose2D) -> float:
    return math.hypot(a.x_m - b.x_m, a.y_m - b.y_m)


def fitted_camera(motion: MotionFit | None, camera: CameraConfig) -> CameraConfig:
    """The configured camera, with the fitted values that differ significantly from it."""
    if motion is None:
        return camera
    height_m, pitch_rad = map(float, motion.values)
    if abs(height_m - camera.height_m) > SURE_SIGMAS * motion.sigmas[0]:  # False for NaN
        camera = replace(camera, height_m=height_m)
    if abs(pitch_rad - camera.pitch_rad) > SURE_SIGMAS * motion.sigmas[1]:
        camera = replace(camera, pitch_rad=pitch_rad)
    return camera


def summary(motion: MotionFit | None, offset: Offset | None, camera: CameraConfig) -> str:
    """The result as text; ``camera`` is the one that was configured."""
    lines = []
    if motion is None:
        lines.append(f'height and pitch: not determined, fewer than {MIN_PAIRS} pairs of images '
                     'a metre or two apart on straight roads show enough that stands still')
    else:
        height_m, pitch_rad = motion.values
        lines += [
            f'{motion.pairs} pairs of images',
            f'camera height   {height_m:.2f} m +- {motion.sigmas[0]:.2f}   '
            f'(was {camera.height_m:.2f})' if math.isfinite(height_m) else
            'camera height   not determined: no height makes the road of two images alike',
            f'camera pitch    {math.degrees(pitch_rad):.2f} deg nose down +- '
            f'{math.degrees(motion.sigmas[1]):.2f}   (was {math.degrees(camera.pitch_rad):.2f})']
    if offset is not None:
        source = ('poses of the filter, which hold the offset already' if offset.filtered
                  else 'true poses')
        (x_m, y_m), (sigma_x, sigma_y) = offset.xy_m, offset.sigmas_m
        lines += [
            f'{offset.frames} frames at the {source}, {offset.without_pose} images left out for '
            'want of a known pose',
            f'matches lie     {x_m:.2f} m east +- {sigma_x:.2f} and {y_m:.2f} m north +- '
            f'{sigma_y:.2f} of the poses: the offset of the imagery '
            f'({offset.gain_nats:.3f} nats a frame)']
        if offset.at_edge:
            lines.append('offset: at the edge of what was tried; check the imagery or the poses')
    fitted = fitted_camera(motion, camera)
    changed = [f'    {name}: {getattr(fitted, name):.{digits}f}'
               for name, digits in (('height_m', 3), ('pitch_rad', 5))
               if getattr(fitted, name) != getattr(camera, name)]
    if changed:
        lines += ['set in the parameter file:', '  camera:', *changed]
    elif motion is not None:
        lines.append('height and pitch agree with what is configured: keep it')
    return '\n'.join(lines)
