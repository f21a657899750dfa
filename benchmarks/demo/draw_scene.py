"""Draw the messages of the RViz scene as RViz lays them out: a picture for the documentation.

It reads a recording of /crossview_scene/... and uses nothing but those messages, so it also shows
whether they are right.  It is not a screenshot.
"""

import argparse
from pathlib import Path
import sys

import cv2
import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib.patches import Ellipse
import matplotlib.pyplot as plt

from crossview_localizer.command import run_command

SCENE = '/crossview_scene'
PATH_COLOURS = {
    'ground_truth': '#ffffff', 'gnss': '#ed333b', 'prior': '#ffa348', 'refined': '#2ec27e'}
REACH_M = 22.0
LINE_STRIP, TEXT, CYLINDER = 4, 9, 3


def read_scene(bag: Path, until_s: float) -> dict[str, object]:
    """The newest message of each topic so many seconds after the first heat map.

    All tiles of the ground, and of the markers the newest of each name and number.
    """
    from crossview_localizer.bags.bag import read_messages
    latest, ground, markers, start_ns = {}, [], {}, None
    for topic, bag_ns, msg in read_messages(bag):
        if not topic.startswith(SCENE):
            continue
        name = topic.removeprefix(f'{SCENE}/')
        if name == 'heatmap':
            start_ns = start_ns or bag_ns
        if start_ns is not None and bag_ns > start_ns + until_s * 1e9:
            break
        if name == 'ground':
            ground += msg.markers
        elif name in ('ellipses', 'alternatives'):
            for marker in msg.markers:
                if marker.action == 3:
                    markers = {key: m for key, m in markers.items() if key[0] != name}
                else:
                    markers[name, marker.ns, marker.id] = marker
        latest[name] = msg
    if 'heatmap' not in latest or 'path/refined' not in latest:
        raise ValueError(f'{bag} holds no scene; record {SCENE}/... while a bag is replayed')
    return latest | {'ground': ground, 'markers': [m for m in markers.values() if m.action == 0]}


def draw(scene: dict[str, object], out: Path) -> None:
    figure, axes = plt.subplot_mosaic(
        [['plan', 'camera'], ['plan', 'views']], figsize=(11.0, 6.0), width_ratios=[1.25, 1.0],
        layout='constrained', facecolor='#1e1e22')
    _draw_plan(axes['plan'], scene)
    for name in ('camera', 'views'):
        axes[name].axis('off')
        if name in scene:
            axes[name].imshow(_rgb(scene[name]))
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _draw_plan(axes, scene) -> None:
    for marker in scene['ground']:
        picture = cv2.imdecode(np.frombuffer(marker.texture.data, np.uint8), cv2.IMREAD_COLOR)
        points = np.array([(p.x, p.y) for p in marker.points])
        (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
        axes.imshow(picture[..., ::-1], extent=(west, east, south, north))

    grid = scene['heatmap'].info
    shown = np.asarray(scene['heatmap'].data, float).reshape(grid.height, grid.width)
    west, south = grid.origin.position.x, grid.origin.position.y
    extent = (west, west + grid.width * grid.resolution,
              south, south + grid.height * grid.resolution)
    red = shown / 100.0
    rgba = np.stack((red, np.zeros_like(red), 1.0 - red, np.where(shown > 0, 0.6, 0.0)), axis=-1)
    axes.imshow(rgba, extent=extent, origin='lower')

    for name, colour in PATH_COLOURS.items():
        poses = scene[f'path/{name}'].poses if f'path/{name}' in scene else []
        xy_m = np.array([(p.pose.position.x, p.pose.position.y) for p in poses]).reshape(-1, 2)
        axes.plot(*xy_m.T, color=colour, linewidth=1.8, label=name.replace('_', ' '))
    for marker in scene['markers']:
        _draw_marker(axes, marker)

    centre = scene['path/refined'].poses[-1].pose.position
    axes.set(xlim=(centre.x - REACH_M, centre.x + REACH_M),
             ylim=(centre.y - REACH_M, centre.y + REACH_M), xticks=[], yticks=[], aspect='equal')
    axes.legend(loc='lower left', fontsize=8, facecolor='#1e1e22', labelcolor='white')


def _draw_marker(axes, marker) -> None:
    from crossview_localizer.ros.conversions import yaw_from_quaternion
    colour = (marker.color.r, marker.color.g, marker.color.b)
    position = marker.pose.position
    if marker.type == LINE_STRIP:
        points = np.array([(p.x, p.y) for p in marker.points])
        axes.plot(*points.T, color=colour, alpha=min(marker.color.a, 1.0), linewidth=1.5)
    elif marker.type == TEXT:
        axes.text(position.x, position.y, marker.text, color=colour, fontsize=7, ha='center',
                  clip_on=True)
    elif marker.type == CYLINDER:
        angle_deg = np.degrees(yaw_from_quaternion(marker.pose.orientation))
        axes.add_patch(Ellipse(
            (position.x, position.y), marker.scale.x, marker.scale.y, angle=angle_deg,
            color=colour, alpha=marker.color.a, linewidth=0))


def _rgb(msg) -> np.ndarray:
    return np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.width, 3)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.demo.draw_scene',
        description='Draw a recording of the RViz scene.',
        epilog='example: python -m benchmarks.demo.draw_scene scene_bag --at 20 '
        '--out docs/scene.png')
    parser.add_argument('bag', type=Path, help=f'recording of {SCENE}/...')
    parser.add_argument('--at', type=float, default=20.0, metavar='S',
                        help='seconds after the first heat map (default: %(default)g)')
    parser.add_argument('--out', type=Path, required=True, metavar='PNG', help='picture to write')
    return run_command(
        parser, argv, lambda args: draw(read_scene(args.bag, args.at), args.out))


if __name__ == '__main__':
    sys.exit(main())
