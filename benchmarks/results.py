"""docs/results.md from the JSON files that the benchmarks wrote below docs/results."""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import sys

from benchmarks import REPOSITORY

DOCS = REPOSITORY / 'docs'
INTRODUCTION = """# Results

Made by `python -m benchmarks.results` from the files in `docs/results`, each of which its own
command writes. **Everything here is simulation** unless a section says otherwise: rendered towns
that no training saw, other days than the orthophoto's.
"""


def cells(values, places: int = 2) -> str:
    return ' | '.join(
        '-' if value is None else value if isinstance(value, str) else f'{value:.{places}f}'
        if isinstance(value, float) else str(value) for value in values)


def markdown(head: list[str], rows: list[list], places: int = 2) -> str:
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    return '\n'.join(lines + [f'| {cells(row, places)} |' for row in rows]) + '\n'


def demo(result: dict) -> str:
    keys = ('median_m', 'mean_m', 'p95_m', 'lateral_median_m', 'longitudinal_median_m',
            'heading_median_deg', 'coverage_95', 'nees_mean', 'n')
    table = markdown(
        ['row', 'median m', 'mean m', 'p95 m', 'lateral m', 'longitudinal m', 'heading deg',
         'coverage 95 %', 'NEES', 'n'],
        [[name, *(row[key] for key in keys)] for name, row in result['pooled'].items()])
    runs = markdown(
        ['world seed', 'refined median m', 'image_blind median m', 'latency p50 ms', 'p95', 'p99',
         'seconds'],
        [[run['world_seed'], run['refined']['median_m'], run['image_blind']['median_m'],
          run['latency_ms']['p50'], run['latency_ms']['p95'], run['latency_ms']['p99'],
          round(run['seconds'])] for run in result['runs']])
    return f"""## The whole system: demos through real ROS 2

`make demo SEED=...`, then
`python -m benchmarks.demo --pool FOLDERS --json docs/results/demo.json`.
A bag with camera (4 Hz), biased GNSS with jumps and an outage, and drifting odometry is replayed
in real time through the node; two CPU cores. Position of `base_link` at every image after the
first 5 s, outage included.

{table}
`refined` is what the node published; `prior` the same filter without matches; `image_blind` the
node with each image exchanged for one at least 200 m away; `raw_correlation` and `random_init`
the offline `Localizer` with those matchers. A row that is the prior, or nearly: the heat maps were
found not to fit the map (`match_trust.py`), and the pose went on without them.

{runs}"""


def dense(result: dict) -> str:
    titles = {
        'synthetic': 'Single frames, unseen towns, prior off by up to 18.5 m on each axis and '
                     '10 degrees',
        'warped': 'The same with imagery misregistered by a smooth 0.5 m RMS',
        'real_layout': 'Real layouts (buildings, roads, trees and camera poses of a real suburb, '
                       'rendered)',
        'filtered': 'Through the filter: the demos above'}
    keys = ('median_m', 'mean_m', 'p95_m', 'lateral_median_m', 'longitudinal_median_m',
            'heading_median_deg', 'coverage_68', 'coverage_95', 'ambiguous', 'semi_major_m', 'n')
    parts = [
        '## The dense matcher\n\n`make results-dense`: the matcher by itself, without the filter, '
        'on images of 231 x 154.\n']
    for name, title in titles.items():
        if name in result:
            parts.append(f'### {title}\n\n' + markdown(
                ['method', 'median m', 'mean m', 'p95 m', 'lateral', 'longitudinal', 'heading deg',
                 'cov. 68', 'cov. 95', 'ambiguous', 'semi-major m', 'n'],
                [[method, *(row[key] for key in keys)] for method, row in result[name].items()]))
    parts.append(
        '`paper` is the tile matcher with SAFA descriptors and grey pixels, tiles 1.5 m apart; '
        '`shuffled_images` the dense\nmatcher with images from elsewhere; `blind_trained` a '
        'network trained on grey images; `image_blind` the better of\nthose that were run; '
        '`yaw_full_circle` searches every heading; `dense_wide_prior` has a prior of +-50 m.\n'
        'Coverage counts all frames; an ambiguous one claims the whole window, an unambiguous one '
        'of the shipped network\nan ellipsoid of a Student t ([method.md](method.md)), whose '
        'covariance the semi-major axis is of.\n\n'
        f'Device: {result["device"]}, torch {result["torch"]}; worlds ' + ', '.join(
            f'{part} {found}' for part, found in result['world_hash'].items()) + '.\n')
    return '\n'.join(parts)


def real(result: dict) -> str:
    keys = ('median_m', 'lateral_median_m', 'longitudinal_median_m', 'heading_median_deg',
            'within_2_m', 'within_5_m', 'evidence_nats', 'ambiguous', 'sure_and_wrong',
            'coverage_95', 'n')
    parts = ["""## Real pictures

`make results-real`: single frames of real cameras (Street View cars, nuScenes) against real
overhead pictures of the same places, which lie outside this repository. Each view has three
priors, uniform on both axes and within 10 degrees. What the sets are, how well their places are
known and what the columns mean: [real_pairs.md](real_pairs.md).
"""]
    for name, rows in result['sets'].items():
        prior_m = rows['prior_centre']['prior_m']
        title = name if prior_m is None else f'{name}: prior {prior_m:.1f} m off in the median'
        parts.append(f'### {title}\n\n' + markdown(
            ['row', 'median m', 'lateral', 'longitudinal', 'heading deg', 'within 2 m',
             'within 5 m', 'evidence nats', 'ambiguous', 'sure and wrong', 'cov. 95', 'n'],
            [[f'`{row}`', *(found[key] for key in keys)] for row, found in rows.items()]))
    parts.append(
        '`dense` has the shipped weights, which saw rendered towns only; `gradient_correlation` '
        'has learned nothing;\n`image_blind` is shown the views of another place of the set, or '
        'grey where the set has one place only.\n\n'
        f'Weights {result["weights"]}, {result["device"]}. A line an answer: '
        '[views.csv.gz](results/views.csv.gz).\n')
    return '\n'.join(parts)


def corruptions(result: dict) -> str:
    rows = [[name, result['clean']['median_m'], *(row['median_m'] for row in steps)]
            for name, steps in result.items() if isinstance(steps, list) and name != 'worlds']
    table = markdown(['median m', 'as it is', '1', '2', '3', '4', '5'], rows)
    return f"""## Spoiled images

`python -m benchmarks.accuracy.corruptions --worlds ...`: single frames, severity 1 to 5.

{table}
![error, ambiguity and coverage against severity](results/corruptions.png)
"""


def fusion(result: dict) -> str:
    parts = ["""## Fusion: a pose one can trust

`make results-fusion`; what each row is, real logs, spoofing, starts and what was missed:
[fusion.md](fusion.md).
"""]
    if 'outage' in result:
        towns = ', '.join(map(str, result['rendered']['towns']))
        rows = [[f'{length_s} s', method, row['p50_m'], row['p95_m'], row['max_m'], row['n']]
                for length_s, methods in result['outage'].items()
                for method, row in methods.items()]
        found = {'match': result['calibration'], **result['calibration']['controls']}
        calibrated = [
            [method, row['median_m'], row['coverage_95'], row['nees_mean'],
             *(row['axes'][axis]['nees_mean'] for axis in ('longitudinal', 'lateral', 'heading')),
             row['n']] for method, row in found.items()]
        parts.append(f"""### GNSS outages in rendered towns (simulation)

Position error after so long without GNSS, towns {towns}: with matches, and with odometry only
from the same pose.

from benchmarks import REPOSITORY

{markdown(['without GNSS', 'method', 'median m', 'p95 m', 'max m', 'n'], rows)}
![error against the time without GNSS](results/fusion_outage.png)

### Calibration in rendered towns (simulation)

One pose from each segment of 10 s; NEES is ideal at 3, per axis at 1.

{markdown(['method', 'median m', 'coverage 95 %', 'NEES', 'longitudinal', 'lateral', 'heading',
           'n'], calibrated)}
![claimed against observed coverage](results/fusion_calibration.png)
""")
    if 'wrong_images' in result:
        rows = [[row['town'], row['distrusted_before'], row['noticed_after_s'],
                 row['distrusted_while_wrong'], row['trusted_again_after_s']]
                for row in result['wrong_images']]
        parts.append(f"""### Images of another place, in rendered towns (simulation)

Right for 120 s, then for 120 s each image is one from at least 200 m away, then right again.

{markdown(['town', 'distrusted before', 'noticed after s', 'distrusted meanwhile',
           'trusted again after s'], rows)}""")
    if 'search' in result:
        rows = [[kind.replace('_', ' '), row['success'], row['wrong'], row['seconds_median'],
                 row['seconds_p95'], row['n']] for kind, row in result['search'].items()]
        parts.append(f"""### Starts without a heading, wrong locks: rendered towns (simulation)

{markdown(['case', 'right', 'wrong', 'seconds, median', 'p95', 'n'], rows)}""")
    rows = [[drive, row['matcher_median_m'], row['gnss_odometry_median_m'], row['fused_median_m'],
             row['coverage_95']] for drive, row in result.get('matcher_replay', {}).items()]
    table = markdown(['drive', "matcher's median m", 'GNSS + odometry m', 'fused m',
                      'coverage 95 %'], rows)
    parts.append(f"""### The errors of a real matcher, replayed

Errors of a published matcher on KITTI (not ours), along simulated GNSS and odometry, five seeds.

{table}
![medians of matcher, GNSS with odometry, and both](results/fusion_replay.png)
""")
    return '\n'.join(parts)


def faults(result: dict) -> str:
    rows = result['rows']
    good = sum(bool(row['ok']) for row in rows)
    missed = ', '.join(result.get('not_honest', [])) or 'none'
    return f"""## Faults

`make faults`: {good} of {len(rows)} faults through real processes end as they should (diagnostic,
honest pose or none, node running, all well afterwards), in a simulated flat world. A line each:
[faults.json](results/faults.json). Told by `/diagnostics` (filter: ERROR, do not trust the pose)
and not by the covariance, a known miss: {missed}.
"""


def endurance(result: dict) -> str:
    keys = ('wall_s', 'node_cpu_s', 'odometry_sent', 'odometry_received', 'images_sent',
            'images_localized', 'images_dropped', 'images_counted_lost', 'memory_warm_mb',
            'memory_end_mb', 'latency_first_third_ms', 'latency_last_third_ms', 'latency_p99_ms')
    table = markdown(
        ['', *(drive['name'] for drive in result['drives'])],
        [[key.replace('_', ' '), *(drive[key] for drive in result['drives'])] for key in keys]
        + [['problems', *('; '.join(drive['problems']) or 'none' for drive in result['drives'])]],
        1)
    return f"""## Endurance

`make endurance`: one node process in the simulated flat world. An hour of driving at ten times the
pace (images 231 x 154 at 1 Hz, odometry 20 Hz), and three minutes at the true one (1280 x 960 at
16 Hz, odometry 100 Hz). Dropped is what the node counts because a newer image came while it was
busy, lost what its subscription had no room for.

{table}"""


def paper(result: dict) -> str:
    keys = ('recall_at_1_local', 'recall_at_1_global', 'median_m', 'mean_m', 'p95_m')
    rows = [[f'{kind} loss, seed {run["seed"]}', *(run[key] for key in keys)]
            for kind in ('local', 'global') for run in result[kind]]
    rows += [[f'`{name}`', *(row[key] for key in keys)]
             for name, row in result['controls'].items()]
    rows.append(['chance', result['chance_recall_at_1_local'], *[None] * 4])
    table = markdown(['network', 'local recall@1 %', 'global recall@1 %', 'median m', 'mean m',
                      'p95 m'], rows)

    # Local recall on the validation day: by rate, by what is varied, by step.
    steps = result['rate_steps']
    tried = [[f'rate {rate}, {steps} steps', *(result['rates'][kind][rate]
                                               for kind in ('local', 'global'))]
             for rate in result['rates']['local']]
    tried += [[f'{name}, {steps} steps', found['local'], found['global']]
              for name, found in result.get('variants', {}).items()]
    curves = {kind: [curve for name, curve in result['validation_of_runs'].items()
                     if name.startswith(kind)] for kind in ('local', 'global')}
    tried += [[f'step {step}, mean of the seeds', *(
        sum(curve[step] for curve in curves[kind]) / len(curves[kind]) for kind in curves)]
        for step in curves['local'][0]]
    validation = markdown(
        ['validation day, local recall@1 %', 'local loss', 'global loss', 'difference'],
        [[name, local, other, local - other] for name, local, other in tried], 1)

    def interval(values: list[float], unit: str) -> str:
        low, value, high = (f'{number:+.2f}' for number in values)
        return f'**{value} {unit}** [{low}, {high}]'

    train_days, val_days, test_days = result['days']
    difference, goal = result['difference'], result['goal']
    return f"""## The papers' claim: local loss against global baseline, plan `{result['plan']}`

`make results-paper PLAN={result['plan']}`: one simulated town and one route; {train_days} days
train, {val_days} chooses rates and checkpoints, {test_days} test ({result['queries']} queries,
{result['places']} tiles). Both losses saw {result['steps']} batches of {result['batch']} pairs of
the same images, on ImageNet's EfficientNet-Lite0, which stays as it is: the fusion and the heads
learn. Prior: a disc of 50 m about the truth; a tile within 5 m is right; ties are no hits.
Transductive, as in the papers: the tiles of the test days are in the database.

{table}
Local minus global, 95 % over seeds and {result['stretches']} stretches of 200 m of the route:
local recall@1 {interval(difference['recall_at_1_local_points'], 'points')}, median
{interval(difference['median_m'], 'm')}.
The goal, {goal['points']:g} points and both outside the interval, is
{'reached' if goal['reached'] else '**missed**'}; why, and what the plans are:
[training.md](training.md).

{validation}
{result['device']}, torch {result['torch']}, {result['minutes']:.0f} minutes for the runs of the
first table. World and budget {result['world_hash']}. A line a query:
[{result['frames']}](results/{result['frames']}).
"""


SECTIONS: dict[str, Callable[[dict], str]] = {
    'demo': demo, 'dense': dense, 'real': real, 'corruptions': corruptions, 'fusion': fusion,
    'faults': faults, 'endurance': endurance, 'paper': paper, 'paper_cpu_16': paper,
}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.results', description=__doc__,
        epilog='example: python -m benchmarks.results')
    parser.add_argument('--docs', type=Path, default=DOCS)
    args = parser.parse_args(arguments)
    parts = [INTRODUCTION]
    try:
        for name, section in SECTIONS.items():
            path = args.docs / 'results' / f'{name}.json'
            if path.is_file():
                parts.append(section(json.loads(path.read_text())))
        (args.docs / 'results.md').write_text('\n'.join(parts))
    except (OSError, ValueError, KeyError) as error:
        print(f'benchmarks.results: {error!r}', file=sys.stderr)
        return 2
    print(args.docs / 'results.md')
    return 0


if __name__ == '__main__':
    sys.exit(main())
