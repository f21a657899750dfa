"""Draws over frames of a recorded run which parts of the image made the match."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from crossview_localizer.bags.bag import BagError, read_messages
from crossview_localizer.bags.events import read_events, Unusable
from crossview_localizer.bags.recorded_run import DIAGNOSTICS_TOPIC, NODE, read_run
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import CameraImage
from crossview_localizer.evaluation.background import Orthophoto, orthophoto_of
from crossview_localizer.evaluation.figure_style import STYLE
from crossview_localizer.evaluation.heatmap_figures import draw_heatmap_panel
from crossview_localizer.evaluation.run_metrics import compare_with_truth
from crossview_localizer.evaluation.shots import choose_nearest, choose_typical, read_shots, Shot
from crossview_localizer.localizer import Localizer
from crossview_localizer.matching.matcher import SearchWindow

FOR_RGB, AGAINST_RGB = (255, 120, 0), (0, 110, 255)
STRONGEST_ALPHA = 0.6
SMOOTH_CELLS = 0.8
DPI = 110


def write_overlays(
    out: Path, bag: Path, input_bag: Path, localizer: Localizer, node_config: NodeConfig,
    at_s: Sequence[float] = (), topics: Topics | None = None, node: str = NODE,
    progress: bool = False,
) -> list[Path]:
    """Draw frames of a recording into ``out``: those at ``at_s``, or best, median and worst.

    Returns the paths of the pictures.

    Raises ValueError or OSError with what was found and expected.
    """
    from crossview_localizer.matching.attribution import peak_shares

    topics, config = topics or Topics(), localizer.config
    run = read_run(bag, input_bag, localizer.frame, topics, node, node_config, progress)
    comparison = compare_with_truth(run)
    stamps_ns = choose_nearest(run, at_s) if len(at_s) else choose_typical(run, comparison)
    shots = read_shots(run, comparison, stamps_ns, bag, input_bag, topics, node)
    images = _read_images(input_bag, localizer, node_config, topics, set(stamps_ns.values()))
    embedded = localizer.embedding_map.orthophoto()
    orthophoto = orthophoto_of(*embedded) if embedded else None
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for shot in tqdm(shots, desc='draw', unit='frame', disable=None if progress else True):
        search = shot.prior and SearchWindow.around(shot.prior, config.match)
        window = search and localizer.embedding_map.window(
            shot.prior, search.half_width_m, localizer.matcher.margin_m)
        if window is None:
            raise BagError(f'the prior of {shot.label} is not recorded, or lies outside the map')
        image = images[shot.stamp_ns]
        shares, _ = peak_shares(
            localizer.matcher, image, window, shot.prior, search, config.camera.pitch_rad)
        figure = draw_overlay(shot, image, shares, config.camera.pitch_rad, orthophoto)
        paths.append(out / f'overlay_{shot.label.lower().replace(" ", "_")}.png')
        figure.savefig(paths[-1], dpi=DPI)
        plt.close(figure)
    return paths


def find_sources(bag: Path, node: str) -> dict[str, str]:
    """Read ``map_path`` and ``weights`` from the node's diagnostics; {} if they are not there."""
    wanted = f'{node.rsplit("/", 1)[-1]}: map'
    for _, _, msg in read_messages(bag, {DIAGNOSTICS_TOPIC}):
        for status in msg.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name == wanted and 'weights' in values:
                return values
    return {}


def _read_images(
    bag: Path, localizer: Localizer, node_config: NodeConfig, topics: Topics, stamps_ns: set[int],
) -> dict[int, CameraImage]:
    """Read the images with these stamps; BagError if one is missing or cannot be used."""
    images, reasons = {}, []
    chosen = replace(topics, gnss='', gnss_velocity='', truth='')
    for event in read_events(
            bag, localizer.frame, node_config, localizer.config, chosen, stamps_ns):
        if isinstance(event, CameraImage):
            images[event.stamp_ns] = event
        elif isinstance(event, Unusable) and event.topic == topics.image:
            reasons.append(event.reason)
        if len(images) == len(stamps_ns):
            return images
    missing = min(stamps_ns - set(images))
    raise BagError(
        f'{bag} has no usable image on {topics.image} with the stamp {missing}; '
        + (reasons[0] if reasons else 'expected the bag that was played for this recording'))


def draw_overlay(
    shot: Shot, image: CameraImage, shares, pitch_rad: float, orthophoto: Orthophoto | None,
) -> Figure:
    """Draw camera image, ground view and heat map of one frame with its PeakShares."""
    from crossview_localizer.matching.attribution import on_image

    smooth = replace(shares, nats=smoothed(shares.nats))
    reach = max(float(np.percentile(np.abs(smooth.nats), 98)), 1e-9)
    size_px = shares.view.shape[1], shares.view.shape[0]
    painted_view = painted(
        shares.view, cv2.resize(smooth.nats, size_px, interpolation=cv2.INTER_LINEAR), reach)
    on_road = shares.raster_from_base is not None
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 4 if on_road else 3, figsize=(14.5 if on_road else 11.5, 4.2),
            width_ratios=(1.4, 1.0, 1.0, 1.0) if on_road else (1.4, 1.0, 1.0))
        if on_road:
            panels[0].imshow(painted(
                image.rgb, on_image(smooth, image.camera, pitch_rad), reach))
            panels[1].imshow(painted_view, interpolation='nearest')
            panels[1].set_title('as the network sees the road', loc='left')
            panels[1].set_axis_off()
        else:
            panels[0].imshow(painted_view)
        panels[0].set_axis_off()
        for_nats = shares.nats[shares.nats > 0].sum()
        against_nats = shares.nats[shares.nats < 0].sum()
        panels[0].set_title(
            f'{shot.label}: for the peak +{for_nats:.1f} nats (orange), against '
            f'{against_nats:.1f} (blue)', loc='left')
        draw_heatmap_panel(panels[-2], shot, orthophoto)
        panels[-2].set_title(
            f'peak {shot.distance_m:.2f} m from the {"truth" if shot.truth else "prior"}',
            loc='left')
        draw_heatmap_panel(panels[-1], shot, orthophoto, around_peak=True)
        panels[-1].set(ylabel='')
        panels[-1].set_title('around the peak', loc='left')
        handles, labels = panels[-2].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower right', ncols=len(labels))
    return figure


def painted(rgb: np.ndarray, nats: np.ndarray, reach: float) -> np.ndarray:
    """Colour a picture (H, W, 3) by its shares in nats (H, W), NaN where there are none.

    The colour is strongest at ``reach`` nats and beyond.
    """
    strength = np.clip(np.nan_to_num(nats) / reach, -1.0, 1.0)[..., None]
    colour = np.where(strength > 0, np.array(FOR_RGB), np.array(AGAINST_RGB))
    alpha = STRONGEST_ALPHA * np.abs(strength)
    return ((1.0 - alpha) * rgb + alpha * colour).astype(np.uint8)


def smoothed(nats: np.ndarray) -> np.ndarray:
    """Remove the noise of single cells; the sum stays the same."""
    return cv2.GaussianBlur(nats, (0, 0), SMOOTH_CELLS, borderType=cv2.BORDER_REFLECT)
