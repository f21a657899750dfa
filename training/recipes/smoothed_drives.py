"""The recipe of the dense matcher on drives whose poses are smoothed, not known exactly.

It is ``PoseLikelihoodRecipe`` with a slow offset for each drive, by expectation-maximisation: at
each validation the posterior of the offsets follows from the present network (E step), and the
steps up to the next one train about the corrected poses (M step).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path

import numpy as np
import torch

from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.dense import DenseConfig, DenseNetwork
from training.data.datasets import World, WorldFiles
from training.distributed import Ranks
from training.evaluation.dense_confidence import fit_confidence
from training.recipes.drive_offsets import (
    offset_log_likelihoods,
    offset_posterior,
    reach_cells,
)
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe


@dataclass(frozen=True)
class OffsetConfig:
    """How the slow offset of a drive changes, and how many frames are scored to find it."""

    tau_s: float = 60.0        # correlation time of the offset
    frames: int = 150          # largest number per drive, evenly over the drive
    confidence_frames: int = 300


@dataclass(frozen=True)
class DriveFrames:
    """Where the frames of one drive lie, in the order of time.

    ``source`` and ``world`` (N,) are the numbers of the list of files and of the file, ``index``
    (N,) that of the frame in its file and ``row`` (N,) that in all files of its source.
    """

    source: np.ndarray
    world: np.ndarray
    index: np.ndarray
    row: np.ndarray
    stamps_ns: np.ndarray
    poses: np.ndarray
    covariances: np.ndarray


def frames_by_drive(sources: Sequence[WorldFiles]) -> list[DriveFrames]:
    """The frames of prepared files, sorted into their drives."""
    columns: list[tuple] = []
    for source, worlds in enumerate(sources):
        row = 0
        for number in range(len(worlds)):
            found = worlds.frames(number)
            count = len(found['poses'])
            columns.append((
                found['drive'], np.full(count, source), np.full(count, number), np.arange(count),
                row + np.arange(count), found['stamps_ns'], found['poses'],
                found['pose_covariances']))
            row += count
    drive, *fields = (np.concatenate(column) for column in zip(*columns))
    drives = []
    for number in np.unique(drive):
        mine = np.flatnonzero(drive == number)
        mine = mine[np.argsort(fields[4][mine], kind='stable')]
        drives.append(DriveFrames(*(field[mine] for field in fields)))
    return drives


def estimate_offsets(network: DenseNetwork, sources: Sequence[WorldFiles], config: OffsetConfig,
                     errors: MatchErrors, seen: int | None = None,
                     ) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each source the offsets (F, 2), m, and their covariances (F, 2, 2), of all its frames.

    Only the images of the first ``seen`` sources are looked at, or else all.
    Images that are near each other err alike; as in the filter they count for less (``errors``).
    """
    counts = [sum(len(worlds.frames(n)['poses']) for n in range(len(worlds)))
              for worlds in sources]
    found = [(np.zeros((count, 2)), np.zeros((count, 2, 2))) for count in counts]
    for drive in frames_by_drive(sources):
        chosen = np.unique(np.linspace(0, len(drive.row) - 1, config.frames).round().astype(int))
        sigma_m = offset_sigma_m(drive.covariances)
        order = np.lexsort((drive.index[chosen], drive.world[chosen], drive.source[chosen]))
        order = order[drive.source[chosen][order] < (len(sources) if seen is None else seen)]
        side = 2 * reach_cells(sigma_m, network.config.cell_m) + 1
        likelihoods = np.zeros((len(chosen), side, side))   # flat where the image is not seen
        if len(order):
            likelihoods[order] = offset_log_likelihoods(
                network, _by_world(drive, chosen[order], sources), sigma_m)
        times_s = (drive.stamps_ns - drive.stamps_ns[0]) * 1e-9
        moved_m = np.hypot(*np.diff(drive.poses[chosen, :2], axis=0, prepend=np.inf).T)
        waited_s = np.diff(times_s[chosen], prepend=-np.inf)
        weights = np.minimum(1.0, np.maximum(
            moved_m / errors.correlation_m, waited_s / errors.correlation_s))
        means, covariances = offset_posterior(
            likelihoods * weights[:, None, None], times_s[chosen],
            network.config.cell_m, sigma_m, config.tau_s)
        for source, (offsets_m, offset_covariances) in enumerate(found):
            mine = drive.source == source
            offsets_m[drive.row[mine]] = _at(times_s[mine], times_s[chosen], means)
            offset_covariances[drive.row[mine]] = _at(times_s[mine], times_s[chosen], covariances)
    return found


def offset_sigma_m(covariances: np.ndarray) -> float:
    """The standard deviation, on each axis, of the poses (N, 2, 2) of a drive on the imagery."""
    return math.sqrt(covariances.trace(axis1=1, axis2=2).mean() / 2)


def _by_world(drive: DriveFrames, rows: np.ndarray, sources):
    """The worlds of these frames, which are sorted by world, with the numbers of the frames."""
    keys = np.stack((drive.source[rows], drive.world[rows]), 1)
    starts = np.flatnonzero(np.any(np.diff(keys, axis=0, prepend=-1), 1))
    for part in np.split(rows, starts[1:]):
        yield sources[drive.source[part[0]]][drive.world[part[0]]], drive.index[part].tolist()


def _at(times_s: np.ndarray, known_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (N, ...) that are known at some times, interpolated linearly."""
    flat = values.reshape(len(values), -1)
    return np.stack([np.interp(times_s, known_s, column) for column in flat.T], 1).reshape(
        len(times_s), *values.shape[1:])


class CorrectedWorlds(Sequence):
    """Prepared files with the slow offset of their drive added to their poses."""

    def __init__(self, worlds: WorldFiles, offsets_m: np.ndarray, covariances: np.ndarray):
        counts = [len(worlds.frames(n)['poses']) for n in range(len(worlds))]
        self._worlds, self._offsets_m, self._covariances = worlds, offsets_m, covariances
        self._first = np.concatenate(([0], np.cumsum(counts)))

    def __len__(self) -> int:
        return len(self._worlds)

    def __getitem__(self, number: int) -> World:
        world, rows = self._worlds[number], slice(*self._first[number:number + 2])
        poses = world.poses.copy()
        poses[:, :2] += self._offsets_m[rows]
        return replace(world, poses=poses, pose_covariances=self._covariances[rows])


class SmoothedDriveRecipe(PoseLikelihoodRecipe):
    """Trains on drives, and on rendered places mixed in; validates on held-out stretches.

    The held-out poses keep the covariance of GNSS and odometry alone, so that the score that
    chooses the weights does not depend on offsets which the same weights have found.
    """

    def __init__(self, config: PoseLikelihoodConfig, model: DenseConfig, seed: int,
                 train_files: Sequence[Path], held_out_files: Sequence[Path],
                 places: Sequence[Path], offsets: OffsetConfig):
        train_worlds, held_out = WorldFiles(train_files), WorldFiles(held_out_files)
        super().__init__(config, model, seed, train_worlds, held_out)
        self.places, self.offsets, self.files = list(places), offsets, (train_worlds, held_out)
        covariances = np.concatenate([
            train_worlds.frames(n)['pose_covariances'] for n in range(len(train_worlds))])
        self.register_buffer('offsets_m', torch.zeros(len(covariances), 2, dtype=torch.float64))
        self.register_buffer('offset_covariances', torch.from_numpy(covariances))

    def _world(self, number: int) -> World:
        return CorrectedWorlds(
            self.files[0], self.offsets_m.cpu().numpy(),
            self.offset_covariances.cpu().numpy())[number]

    def validate(self, network: DenseNetwork, ranks: Ranks) -> tuple[dict, dict]:
        metrics, fitted = super().validate(network, ranks)
        [(offsets_m, covariances)] = estimate_offsets(
            network, self.files[:1], self.offsets, network.config.match_errors)
        self.offsets_m.copy_(torch.from_numpy(offsets_m))
        self.offset_covariances.copy_(torch.from_numpy(covariances))
        return metrics | {
            'offset_m': float(np.hypot(*offsets_m.T).mean()),
            'offset_sigma_m': float(np.sqrt(covariances.trace(axis1=1, axis2=2) / 2).mean())
        }, fitted

    def finish(self, path: Path) -> None:
        """Fit the confidence on the held-out stretches, about the poses that all images agree on.
        """
        network = load_network(path)
        _, held_out = estimate_offsets(
            network, self.files, self.offsets, network.config.match_errors)
        fit_confidence(path, CorrectedWorlds(self.files[1], *held_out),
                       self.offsets.confidence_frames)
