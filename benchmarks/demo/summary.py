"""The numbers of the demo as text: of one run, or pooled over several."""

import json
from pathlib import Path

import numpy as np

from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.files import write_atomically
from crossview_localizer.trajectory import Track

MAX_DROPPED = 0.02
NO_OUTPUT = 'no output'
# Outcomes of images that give no pose.
WITHOUT_POSE = (
    NO_OUTPUT, 'dropped', 'superseded', 'invalid', 'not_started', 'too_old')


def write_json(path: Path, content: dict) -> None:
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def explanations(with_controls: bool) -> list[str]:
    """How the numbers are to be read."""
    return [
        'Every row: position of base_link at every image stamp after the first '
        f'{pose_metrics.SETTLING_S:g} s, the GNSS outage included; lateral and longitudinal are '
        'medians of absolute errors in the axes of the true vehicle. Where a row has no fresh '
        'output its last one is moved on by odometry.',
        'cover and nees: share inside the claimed 95 % ellipsoid and mean squared Mahalanobis '
        'error, over (x, y, yaw), so 3 is ideal for nees; gnss_only over (x, y), so 2.',
        'gnss_only: the last fix, moved on for at most '
        f'{pose_metrics.GNSS_EXTRAPOLATION_S:g} s by the velocity of the fixes, with the '
        "receiver's own covariance. odometry_only starts from the true pose. prior: the same "
        'filter without matches.',
        *(('raw_correlation and random_init: the offline Localizer on the same bag with that '
           'matcher and its own map.',) if with_controls else ()),
    ]


def count_missing(name: str, stamps_ns: np.ndarray, poses: Track) -> str:
    """How many images of a run of the node gave no pose of their own."""
    posed = np.isin(stamps_ns, poses.stamps_ns)
    before = int(np.argmax(posed))
    dropped = int((~posed).sum()) - before
    note = (f'{name}: of {len(posed)} images {before} came before the filter had started and '
            f'{dropped} were dropped.')
    if dropped > MAX_DROPPED * len(posed):
        note += ' WARNING: this machine was too busy for a replay in real time; run it alone.'
    return note


def goals(results: dict[str, dict]) -> list[str]:
    """The goals as measured ratios; meant for the pooled table."""
    refined = results['refined']

    def ratio(key: str, other: str) -> float:
        if refined[key] is None or not results[other][key]:
            return np.nan
        return refined[key] / results[other][key]

    lines = [
        (f'refined {key} / {other} {key}', ratio(key, other), '<=', 0.5)
        for key in ('median_m', 'longitudinal_median_m') for other in ('prior', 'image_blind')
        if other in results]
    prior_m, gnss_m = results['prior']['median_m'], results['gnss_only']['median_m']
    beyond = [refined['p95_m'], prior_m, gnss_m, refined['coverage_95']]
    p95_m, prior_m, gnss_m, coverage = (np.nan if value is None else value for value in beyond)
    lines += [
        ('refined p95_m / prior median_m', p95_m / prior_m, '<', 1.0),
        ('refined coverage_95', coverage, '>=', 0.85),
        ('prior median_m / gnss_only median_m', prior_m / gnss_m, '<=', 1.05),
    ]
    compare = {'<=': np.less_equal, '<': np.less, '>=': np.greater_equal}
    return [
        f'{"reached" if compare[sign](value, goal) else "missed ":7}  {text:52} {value:6.2f}  '
        f'(goal {sign} {goal:g})'
        for text, value, sign, goal in lines]


def print_summary(summary: dict) -> None:
    results = {name: summary[name] for name in pose_metrics.ROWS if name in summary}
    print(f'\nSIMULATION, world seed {summary["world_seed"]}, matcher {summary["matcher"]}, '
          f'weights {summary["weights"]}\n')
    print(pose_metrics.table(results))
    print('\nlatency ' + ', '.join(
        f'{name} {value:.0f} ms' for name, value in summary['latency_ms'].items()
        if value is not None))
    print('\n seconds  CPU of all processes')
    for name, seconds in summary['seconds'].items():
        print(f'{seconds:8.1f}{summary["cpu_seconds"][name]:8.1f}  {name}')
    print()
    for note in summary['notes']:
        print(f'- {note}')
    print('\ngoals (they are meant for the pool of three drives: --pool)')
    print('\n'.join(goals(results)))


def print_pool(folders: list[Path], json_path: Path | None = None) -> None:
    """The table over the frames of several demo outputs, and the same as JSON."""
    drives, runs = [], []
    for folder in folders:
        summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
        drives.append(pose_metrics.read_comparison(folder / 'frames.csv'))
        latency = summary['latency_ms']
        judged = pose_metrics.metrics_by_row(drives[-1])
        runs.append({key: summary[key] for key in ('world_seed', 'weights', 'latency_ms')}
                    | {'seconds': summary['seconds']['total']}
                    | {key: judged[key] for key in ('refined', 'image_blind') if key in judged})
        print(f'{folder}: SIMULATION, world seed {summary["world_seed"]}, weights '
              f'{summary["weights"]}, latency p50 {latency["p50"]:.0f} ms, p99 '
              f'{latency["p99"]:.0f} ms, {summary["seconds"]["total"]:.0f} s')
        for name in ('refined', 'image_blind'):
            if name not in judged:
                continue
            missing = sum(outcome in WITHOUT_POSE for outcome in drives[-1].outcomes[name])
            print(f'  {name}: {missing} of {len(drives[-1].truth)} images without a pose of their '
                  'own (dropped, or before the start)')
    results = pose_metrics.metrics_by_row(pose_metrics.pool(drives))
    print(f'\npooled over the frames of {len(folders)} drives\n')
    print(pose_metrics.table(results))
    print()
    print('\n'.join(goals(results)))
    if json_path is not None:
        write_json(json_path, {'pooled': results, 'runs': runs})
