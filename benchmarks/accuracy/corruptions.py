"""How the dense matcher fails: its errors and calibration on corrupted images.

Six corruptions with five severities on single frames of simulated cities that it never saw, by
the protocol of ``benchmarks.accuracy.single_frames``, with the same frames and priors for each.
Severity 0 is the image as it is.
"""

import argparse
import json
from pathlib import Path
import sys

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import DENSE_WEIGHTS, REPOSITORY
from benchmarks.accuracy.frame_estimates import FrameEstimate, summarize
from benchmarks.accuracy.frame_scene import FrameScene
from crossview_localizer.command import run_command
from crossview_localizer.datatypes import CameraImage
from crossview_localizer.networks.checkpoint import load_network
from training.data.datasets import load_world
from training.recipes.dense_groups import prior_about, PRIOR_M

SEVERITIES = (1, 2, 3, 4, 5)


def blur(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """Defocus: a Gaussian of 0.6 pixels (of 231) per step."""
    return cv2.GaussianBlur(rgb, (0, 0), 0.6 * severity)


def noise(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """Sensor noise of 8 grey levels per step."""
    return as_image(rgb + rng.normal(0.0, 8.0 * severity, rgb.shape))


def darkness(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """Dusk: half the light per step, with the noise of a camera that turns its gain up."""
    return as_image(rgb * 0.5 ** severity + rng.normal(0.0, 1.5, rgb.shape))


def fog(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """Fog: contrast falls to the horizon (here the middle row) and less so towards the road."""
    rows = np.linspace(-1.0, 1.0, rgb.shape[0])[:, None, None]
    seen = np.exp(-0.5 * severity * np.exp(-2.0 * np.maximum(rows, 0.0)))
    return as_image(rgb * seen + 205.0 * (1.0 - seen))


def dirt(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """Drops and dirt on the lens: 6 dark blurred discs per step."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for _ in range(6 * severity):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(mask, centre, int(rng.integers(3, 10)), 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 2.0)[..., None]
    return as_image(rgb * (1.0 - 0.85 * mask) + 60.0 * 0.85 * mask)


def occlusion(rgb: np.ndarray, severity: int, rng) -> np.ndarray:
    """A vehicle ahead: a grey box that covers 12 % of the width per step, from the road up."""
    height, width = rgb.shape[:2]
    side = round(0.12 * severity * width)
    left = int(rng.integers(width - side + 1))
    out = rgb.copy()
    out[round(0.3 * height):, left:left + side] = rng.integers(40, 160)
    return out


CORRUPTIONS = {each.__name__: each for each in (blur, noise, darkness, fog, dirt, occlusion)}


def as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def estimate_frames(scene: FrameScene, indices: np.ndarray, name: str | None,
                    severity: int) -> list[FrameEstimate]:
    """Estimates of these frames with one corruption, or with the images as they are."""
    found = []
    for index in indices.tolist():
        rng = np.random.default_rng([index, 5])
        truth, image = scene.truth(index), scene.image(index)
        prior = prior_about(truth, rng, PRIOR_M)
        if name:
            rgb = CORRUPTIONS[name](image.rgb, severity, np.random.default_rng([index, 6]))
            image = CameraImage(0, rgb, image.camera)
        heatmap = scene.match_dense('dense', image, prior, PRIOR_M)
        found.append(FrameEstimate(scene.world.name, index, 'dense', truth,
                                   *scene.estimate('dense', heatmap, prior)))
    return found


def draw(result: dict, path: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout='constrained')
    steps = [0, *SEVERITIES]
    for name in CORRUPTIONS:
        rows = [result['clean'], *result[name]]
        for axis, key in zip(axes, ('median_m', 'ambiguous', 'coverage_95')):
            axis.plot(steps, [row[key] for row in rows], marker='o', markersize=3, label=name)
    axes[0].set(title='median error', ylabel='m', yscale='log')
    axes[0].set_yticks([0.5, 1, 2, 5, 10, 20], ['0.5', '1', '2', '5', '10', '20'])
    axes[0].minorticks_off()
    axes[1].set(title='share of ambiguous frames', ylim=(0, 1))
    axes[2].set(title='95 % coverage, 3 degrees of freedom', ylim=(0, 1.02))
    axes[2].axhline(0.95, color='0.6', linewidth=1)
    axes[2].text(0, 0.9, 'line: nominal, 0.95', color='0.4', fontsize=8)
    for axis in axes:
        axis.set_xlabel('severity (0: as it is)')
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f'SIMULATION, single frames, {result["clean"]["n"]} per point')
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.corruptions', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.corruptions '
        '--worlds runs/test/world_40*.npz')
    parser.add_argument('--worlds', nargs='+', type=Path, required=True,
                        help='prepared test worlds, as single_frames takes them')
    parser.add_argument('--weights', type=Path, default=DENSE_WEIGHTS,
                        help='weights of the dense matcher')
    parser.add_argument('--frames', type=int, default=40, help='frames per world')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'docs/results',
                        help='folder of corruptions.json and corruptions.png')
    return run_command(parser, arguments, run)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    network = load_network(args.weights)
    scenes = [FrameScene(load_world(path), network) for path in args.worlds]
    result = {'weights': network.fingerprint[:12], 'worlds': [p.stem for p in args.worlds]}
    runs = [(None, 0), *((name, step) for name in CORRUPTIONS for step in SEVERITIES)]
    for name, step in tqdm(runs, desc='corruptions', unit=' runs'):
        frames = []
        for number, scene in enumerate(scenes):
            indices = np.random.default_rng(number).permutation(len(scene.world.poses))
            frames += estimate_frames(scene, indices[:args.frames], name, step)
        row = summarize(frames)['dense']
        if name is None:
            result['clean'] = row
        else:
            result.setdefault(name, []).append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'corruptions.json').write_text(json.dumps(result, indent=1) + '\n')
    draw(result, args.out / 'corruptions.png')
    for name in CORRUPTIONS:
        print(f'{name:10}' + ''.join(f'{row["median_m"]:8.2f}' for row in result[name]))
    print(args.out / 'corruptions.json')


if __name__ == '__main__':
    sys.exit(main())
