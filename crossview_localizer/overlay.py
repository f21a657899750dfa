"""What in the image made the match, drawn over frames of a recorded run.

Each picture shows the camera frame, what the network was given of it, and the heat map.  Orange
parts speak for the peak of the heat map, blue parts against it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
import sys

import cv2
import numpy as np
from tqdm import tqdm

from crossview_localizer import report
from crossview_localizer.bags import replay
from crossview_localizer.bags.recorded_run import (
    add_run_arguments,
    decoded,
    messages_stamped,
    NODE,
    open_bag,
    raw_messages,
    read_run,
    RecordedRun,
    RunError,
    topics_of,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage
from crossview_localizer.evaluation import report_figures
from crossview_localizer.evaluation.report_figures import Orthophoto, Shot
from crossview_localizer.localizer import load_localizer, Localizer
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.ros.sensor_rig import SensorRig

FOR_RGB, AGAINST_RGB = (255, 120, 0), (0, 110, 255)
STRONGEST_ALPHA = 0.6
SMOOTH_CELLS = 0.8
DPI = 110


def painted(rgb: np.ndarray, nats: np.ndarray, reach: float) -> np.ndarray:
    """A picture (H, W, 3) under its evidence (H, W), NaN where there is none.

    At ``reach`` nats and beyond the colour is strongest.
    """
    strength = np.clip(np.nan_to_num(nats) / reach, -1.0, 1.0)[..., None]
    colour = np.where(strength > 0, np.array(FOR_RGB), np.array(AGAINST_RGB))
    alpha = STRONGEST_ALPHA * np.abs(strength)
    return ((1.0 - alpha) * rgb + alpha * colour).astype(np.uint8)


def smoothed(nats: np.ndarray) -> np.ndarray:
    """Evidence without the noise of single cells; its sum stays."""
    return cv2.GaussianBlur(nats, (0, 0), SMOOTH_CELLS, borderType=cv2.BORDER_REFLECT)


def draw(
    shot: Shot, image: CameraImage, found, pitch_rad: float, orthophoto: Orthophoto | None,
) -> report_figures.Figure:
    """Camera frame, ground view and heat map of one frame; ``found`` are its PeakShares."""
    import matplotlib.pyplot as plt

    from crossview_localizer.matching.attribution import on_image

    shown = replace(found, nats=smoothed(found.nats))
    reach = max(float(np.percentile(np.abs(shown.nats), 98)), 1e-9)
    size_px = found.view.shape[1], found.view.shape[0]
    on_view = painted(
        found.view, cv2.resize(shown.nats, size_px, interpolation=cv2.INTER_LINEAR), reach)
    on_road = found.raster_from_base is not None
    with plt.rc_context(report_figures.STYLE):
        figure, panels = plt.subplots(
            1, 4 if on_road else 3, figsize=(14.5 if on_road else 11.5, 4.2),
            width_ratios=(1.4, 1.0, 1.0, 1.0) if on_road else (1.4, 1.0, 1.0))
        if on_road:
            panels[0].imshow(painted(
                image.rgb, on_image(shown, image.camera, pitch_rad), reach))
            panels[1].imshow(on_view, interpolation='nearest')
            panels[1].set_title('as the network sees the road', loc='left')
            panels[1].set_axis_off()
        else:
            panels[0].imshow(on_view)
        panels[0].set_axis_off()
        for_nats = found.nats[found.nats > 0].sum()
        against_nats = found.nats[found.nats < 0].sum()
        panels[0].set_title(
            f'{shot.label}: for the peak +{for_nats:.1f} nats (orange), against '
            f'{against_nats:.1f} (blue)', loc='left')
        report_figures.heatmap_panel(panels[-2], shot, orthophoto)
        panels[-2].set_title(
            f'peak {shot.distance_m:.2f} m from the {"truth" if shot.truth else "prior"}',
            loc='left')
        report_figures.heatmap_panel(panels[-1], shot, orthophoto, around_peak=True)
        panels[-1].set(ylabel='')
        panels[-1].set_title('about the peak', loc='left')
        handles, labels = panels[-2].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower right', ncols=len(labels))
    return figure


def chosen_stamps(run: RecordedRun, at_s: Sequence[float]) -> dict[str, int]:
    """The frames with a heat map nearest to these seconds of the run."""
    usable_ns = run.heatmap_ns[np.isfinite(run.peaks_m).all(axis=1)]
    usable_ns = usable_ns[np.isin(usable_ns, run.priors.stamps_ns)]
    if not len(usable_ns):
        raise RunError('the recording has no heat map with its prior; expected a run with matches')
    stamps_ns = {}
    for second in at_s:
        nearest = usable_ns[np.argmin(np.abs(usable_ns - (run.start_ns + second * 1e9)))]
        stamps_ns[f'{(nearest - run.start_ns) * 1e-9:.1f} s'] = int(nearest)
    return stamps_ns


def rig_of(bag: Path, topics: Topics, node_config: NodeConfig, config: LocalizerConfig):
    """Extrinsics and intrinsics as the bag has them."""
    rig = SensorRig(node_config, config.camera)
    with open_bag(bag) as reader:
        for topic in (topics.tf_static, topics.camera_info):
            chosen = [c for c in reader.connections if c.topic == topic]
            for connection, _, data in raw_messages(reader, chosen):
                msg = decoded(reader, connection, data)
                if topic == topics.camera_info:
                    rig.camera_info = msg
                    break
                rig.static_transforms.add(msg)
    return rig


def write_overlays(
    out: Path, bag: Path, input_bag: Path, localizer: Localizer, node_config: NodeConfig,
    at_s: Sequence[float] = (), topics: Topics | None = None, node: str = NODE,
    progress: bool = False,
) -> list[Path]:
    """Draw frames of a recording into ``out``: those at ``at_s``, or best, median and worst.

    Raises ValueError or OSError with what was found and expected.
    """
    from crossview_localizer.matching.attribution import peak_shares

    topics, config = topics or Topics(), localizer.config
    run = read_run(bag, input_bag, localizer.frame, topics, node, node_config, progress)
    frames = report.judge(run)
    stamps_ns = chosen_stamps(run, at_s) if len(at_s) else report.choose_frames(run, frames)
    shots = report.read_shots(run, frames, stamps_ns, bag, input_bag, topics, node)
    pictures = messages_stamped(input_bag, topics.image, stamps_ns.values())
    rig = rig_of(input_bag, topics, node_config, config)
    embedded = localizer.embedding_map.orthophoto()
    orthophoto = report.drawn_from(*embedded) if embedded else None
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for shot in tqdm(shots, desc='draw', unit='frame', disable=None if progress else True):
        if shot.stamp_ns not in pictures or shot.prior is None:
            raise RunError(
                f'{input_bag} has no image on {topics.image} with the stamp {shot.stamp_ns}; '
                'expected the bag that was played for this recording')
        image = rig.camera_image(pictures[shot.stamp_ns])
        search = SearchWindow.around(shot.prior, config.match)
        window = localizer.embedding_map.window(
            shot.prior, search.half_width_m, localizer.matcher.margin_m)
        if window is None:
            raise RunError(f'the prior of {shot.label} lies outside the map')
        found, _ = peak_shares(
            localizer.matcher, image, window, shot.prior, search, config.camera.pitch_rad)
        figure = draw(shot, image, found, config.camera.pitch_rad, orthophoto)
        paths.append(out / f'overlay_{shot.label.lower().replace(" ", "_")}.png')
        figure.savefig(paths[-1], dpi=DPI)
        report_figures.plt.close(figure)
    return paths


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='overlay', formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog='examples:\n'
        '  ros2 run crossview_localizer overlay demo/run --input-bag demo/bag --out overlays\n'
        '  ros2 run crossview_localizer overlay run1 --input-bag drive --map my.map --at 12 60')
    add_run_arguments(parser, ('image',))
    parser.add_argument(
        '--weights', type=Path, help='network weights (default: those that /diagnostics names)')
    parser.add_argument(
        '--params-file', type=Path, metavar='YAML', help="the node's parameters, for its camera "
        'and its search window (default: the defaults)')
    parser.add_argument(
        '--at', type=float, nargs='+', default=[], metavar='S',
        help='seconds from the start (default: the frames with the best, median and worst peak)')
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write to (default: BAG_overlays)')
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    bag, node = arguments.bag, arguments.node.rstrip('/')
    out = arguments.out or bag.with_name(bag.resolve().name + '_overlays')
    try:
        recorded = recorded_sources(bag, node)
        map_path, weights = (
            given or recorded.get(key) for given, key in (
                (arguments.map, 'map_path'), (arguments.weights, 'weights')))
        for name, value in (('map', map_path), ('weights', weights)):
            if not value:
                raise RunError(
                    f'the diagnostics of {bag} name no {name}; give it with --{name}')
        node_config, config = NodeConfig(), LocalizerConfig()
        if arguments.params_file:
            node_config, config = replay.read_parameters(arguments.params_file)
        paths = write_overlays(
            out, bag, arguments.input_bag or bag, load_localizer(map_path, weights, config),
            node_config, arguments.at, topics_of(arguments), node, progress=True)
    except (ValueError, OSError) as error:
        print(f'overlay: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('overlay: interrupted', file=sys.stderr)
        return 130
    for path in paths:
        print(f'overlay: {path}')
    return 0


def recorded_sources(bag: Path, node: str) -> dict[str, str]:
    """``map_path`` and ``weights`` as the node's diagnostics gave them; {} if they did not."""
    wanted = f'{node.rsplit("/", 1)[-1]}: map'
    with open_bag(bag) as reader:
        chosen = [c for c in reader.connections if c.topic == '/diagnostics']
        for connection, _, data in raw_messages(reader, chosen):
            for status in decoded(reader, connection, data).status:
                values = {pair.key: pair.value for pair in status.values}
                if status.name == wanted and 'weights' in values:
                    return values
    return {}


if __name__ == '__main__':
    sys.exit(main())
