"""Make docs/results.md from the JSON files that the benchmarks wrote to docs/results."""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import sys

from benchmarks import REPOSITORY
from crossview_localizer.command import run_command

DOCS = REPOSITORY / 'docs'
INTRODUCTION = """# Results

Look up here how large the errors are, in which data, and beside which control; every section
names the command that measures it again. Written by `python -m benchmarks.results` from the files
in `docs/results`. **Everything is simulation unless it says real**: rendered towns that training
never saw, on other days than the orthophoto's. Real pictures and rendered towns are of the
shipped weights (fac071336036). Single images, corrupted images, the drives with real pictures of
other places, the plain EKF and the errors that last are of the same network with a temperature of
1.82 in place of 1.545 (d5cadd51a134); the demos, faults and speed of the weights before, without
light marks or any pixel channels (e9eefedb5712); the adaptation began with the weights
a21b7d5babbe, and endurance was measured with an earlier filter.
"""


def summary(results: dict[str, dict]) -> str:
    """The main numbers, one line for each result that is there."""
    lines = []
    if 'demo' in results:
        rows = results['demo']['pooled']
        lines.append(
            f'whole system in three towns: {rows["refined"]["median_m"]:.2f} m in the median; '
            f'{rows["prior"]["median_m"]:.2f} m without matches, '
            f'{rows["gnss_only"]["median_m"]:.2f} m by GNSS alone')
    for part, place in (('synthetic', 'unseen towns'),
                        ('real_layout', 'rendered from a real layout')):
        if part in results.get('dense', {}):
            rows = results['dense'][part]
            lines.append(
                f'single images, {place}, prior off by up to 18.5 m: '
                f'{rows["dense"]["median_m"]:.2f} m in the median; '
                f'{rows["paper"]["median_m"]:.2f} m by the tile matcher')
    if 'real' in results:
        sets = [rows for rows in results['real']['sets'].values()
                if rows['dense']['median_m'] is not None]
        better = sum(rows['dense']['median_m'] < rows['prior_centre']['median_m']
                     for rows in sets)
        lines.append(f'**real** pictures, single images: nearer than the centre of the prior on '
                     f'{better} of {len(sets)} sets')
    fusion = results.get('fusion', {})
    for length_s in ('60', '300'):
        if length_s in fusion.get('outage', {}):
            rows = fusion['outage'][length_s]
            lines.append(
                f'{length_s} s without GNSS: {rows["match"]["p50_m"]:.2f} m in the median with '
                f'matches, {rows["odometry"]["p50_m"]:.2f} m with odometry only')
    if 'calibration' in fusion:
        share = fusion['calibration']['coverage_95']
        lines.append(f'the claimed 95 % ellipsoids hold {100 * share:.0f} % of the poses')
    if 'wrong_images' in fusion:
        seconds = [row['noticed_after_s'] for row in fusion['wrong_images']]
        lines.append('images of another place are noticed after '
                     + ', '.join(f'{second:.1f}' for second in seconds) + ' s')
    if 'matcher_replay' in fusion:
        row = fusion['matcher_replay']['representative']
        lines.append(
            f'**real** errors of a published matcher, simulated GNSS and odometry: '
            f'{row["matcher_median_m"]:.2f} m in the median, {row["fused_median_m"]:.2f} m fused')
    if 'faults' in results:
        rows = results['faults']['rows']
        good = sum(row['ok'] for row in rows)
        lines.append(f'faults of inputs and system, handled as expected: {good} of {len(rows)}')
    return ''.join(f'- {line}\n' for line in lines)


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
        [[run['world_seed'], run['refined']['median_m'],
          run.get('image_blind', {}).get('median_m'),
          run['latency_ms']['p50'], run['latency_ms']['p95'], run['latency_ms']['p99'],
          round(run['seconds'])] for run in result['runs']])
    return f"""## The whole system: demos through real ROS 2

`make results-demo` runs the demo for three seeds with all controls and pools them.
A bag with camera (4 Hz), biased GNSS with jumps and an outage, and drifting odometry is replayed
in real time through the node; two CPU cores. Position of `base_link` at every image after the
first 5 s, outage included.

{table}
| row | is |
|---|---|
| `refined` | what the node published |
| `prior` | the same filter without matches |
| `gnss_only` | the last fix, moved on for at most 1 s by the fixes' own velocity |
| `odometry_only` | the odometry, started from the true pose |
| `image_blind` | the node again, with each image replaced by one from at least 200 m away |
| `raw_correlation` | the offline `Localizer` with correlation of pixels, without a network |
| `random_init` | the offline `Localizer` with an untrained network |

What the images brought is the difference between `refined` and `image_blind`. If
`raw_correlation` were near `refined`, the simulated world would be too easy. If a row equals the
prior, or nearly, its heat maps did not fit the map: the node noticed, and went on without them.
Coverage is the share of poses inside their claimed 95 % ellipsoid; NEES is ideal at 3
(`gnss_only`: 2). Latency runs from the image callback to the published pose.

{runs}"""


def dense(result: dict) -> str:
    titles = {
        'synthetic': 'Single frames, unseen towns, prior off by up to 18.5 m on each axis and '
                     '10 degrees',
        'warped': 'The same with imagery distorted smoothly by 0.5 m RMS',
        'real_layout': 'Real layouts (buildings, roads, trees and camera poses of a real suburb, '
                       'rendered)',
        'filtered': 'Through the filter: the demos above'}
    keys = ('median_m', 'mean_m', 'p95_m', 'lateral_median_m', 'longitudinal_median_m',
            'heading_median_deg', 'coverage_68', 'coverage_95', 'ambiguous', 'semi_major_m', 'n')
    parts = [
        '## The dense matcher\n\n`make results-dense`: the matcher alone, without the filter, '
        'on images of 231 x 154 pixels.\n']
    for name, title in titles.items():
        if name in result:
            parts.append(f'### {title}\n\n' + markdown(
                ['method', 'median m', 'mean m', 'p95 m', 'lateral', 'longitudinal', 'heading deg',
                 'cov. 68', 'cov. 95', 'ambiguous', 'semi-major m', 'n'],
                [[method, *(row[key] for key in keys)] for method, row in result[name].items()]))
    parts.append(
        '`paper` is the tile matcher with SAFA descriptors and grey pixels, tiles 1.5 m apart; '
        '`shuffled_images` is the\ndense matcher with images from elsewhere; `blind_trained` is a '
        'network trained on grey images; `image_blind` is\nthe better of these two; '
        '`yaw_full_circle` searches all headings; `dense_wide_prior` has a prior of +-50 m.\n'
        'Coverage counts all frames: an ambiguous one claims the whole window, an unambiguous one '
        'an ellipsoid of a\nStudent t ([method.md](method.md)), to whose covariance the '
        'semi-major axis belongs.\n\n'
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
        '`dense` has the shipped weights, which were trained on rendered towns and places only. '
        'How sure they are\n(the columns ambiguous, sure and wrong, and cov. 95) was fitted on '
        'these same pictures; the mixture of weights,\nthe choice of pixel channels and the rule '
        'for the position of an ambiguous image were chosen on them:\nonly other pictures can '
        'tell how well that holds elsewhere. `gradient_correlation` is not trained;\n'
        '`pixel_channels` has the channels of edges, colours and light marks alone, without '
        'learned descriptors;\n'
        '`image_blind` is shown the views of another '
        'place of the set, or grey if the set has one place only;\n'
        '`weights_...` are the weights of that commit.\n\n'
        f'Weights {result["weights"]}, {result["device"]}. One line per answer: '
        '[views.csv.gz](results/views.csv.gz).\n')
    if 'foreign_pictures' in result:
        parts.append(foreign_pictures(result['foreign_pictures']))
    return '\n'.join(parts)


def foreign_pictures(drives: list[dict]) -> str:
    keys = ('map', 'pictures', 'noticed_after_s', 'used_after_20_s', 'median_m', 'prior_median_m',
            'coverage_95', 'n')
    return '### Drives with real pictures of other places\n\n' + (
        'A car drives in circles over a real overhead picture, and its camera shows real street '
        'pictures of other\nplaces; route, GNSS and odometry are simulated. No match can be '
        'right. The matches must be distrusted within\n20 s, and the pose must be no worse than '
        'the prior.\n\n') + markdown(
            ['map', 'pictures', 'distrusted after s', 'share of matches used after 20 s',
             'median m', 'prior median m', 'cov. 95', 'n'],
            [[drive[key] for key in keys] for drive in drives])


def corruptions(result: dict) -> str:
    rows = [[name, result['clean']['median_m'], *(row['median_m'] for row in steps)]
            for name, steps in result.items() if isinstance(steps, list) and name != 'worlds']
    table = markdown(['median m', 'as it is', '1', '2', '3', '4', '5'], rows)
    return f"""## Corrupted images

`python -m benchmarks.accuracy.corruptions --worlds ...`: single frames, severity 1 to 5.

{table}
![error, ambiguity and coverage against severity](results/corruptions.png)
"""


def fusion(result: dict) -> str:
    parts = ["""## Fusion: a pose one can trust

`make results-fusion`; [fusion.md](fusion.md) explains the rows, and has the lies, real logs,
spoofing, starts and missed goals.
""", measured(result)]
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

Position error after some time without GNSS in the towns {towns}: with matches, and with odometry
only, from the same pose.

{markdown(['without GNSS', 'method', 'median m', 'p95 m', 'max m', 'n'], rows)}
![error against the time without GNSS](results/fusion_outage.png)

### Calibration in rendered towns (simulation)

One pose per segment of 10 s; the ideal NEES is 3, per axis 1.

{markdown(['method', 'median m', 'coverage 95 %', 'NEES', 'longitudinal', 'lateral', 'heading',
           'n'], calibrated)}
![claimed against observed coverage](results/fusion_calibration.png)
""")
    if 'wrong_images' in result:
        rows = [[row['town'], row['distrusted_before'], row['noticed_after_s'],
                 row['distrusted_while_wrong'], row['trusted_again_after_s']]
                for row in result['wrong_images']]
        parts.append(f"""### Images of another place, in rendered towns (simulation)

For 120 s the images are right, for 120 s each comes from at least 200 m away, then they are right
again.

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
    parts.append(f"""### Errors of a real matcher, replayed

Errors of a published matcher (not ours) on KITTI, with simulated GNSS and odometry, five seeds.

{table}
![medians of matcher, GNSS with odometry, and both](results/fusion_replay.png)
""")
    if 'peer_ekf' in result:
        parts.append(peer(result['peer_ekf']))
    if 'lasting_errors' in result:
        rows = [[name.replace('_', ' '), rate.replace('_', ' '), row['median_m'],
                 row['coverage_95'], *(found['nees_mean'] for found in row['axes'].values()),
                 str(row['n'])]
                for name, rates in result['lasting_errors'].items() for rate, row in rates.items()]
        parts.append(f"""### Errors that last, on the same drives (simulation)

One pose per segment of 10 s; the ideal NEES of an axis is 1. The matches of one run are given to
the filter again, shifted, or all or each fourth of them.

{markdown(['matches', 'rate', 'median m', 'coverage 95 %', 'longitudinal', 'lateral', 'heading',
           'n'], rows)}""")
    return '\n'.join(parts)


def measured(result: dict) -> str:
    """At which commit each result was measured, and with which seeds."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, how in result.get('measured', {}).items():
        first, last = how['seeds'][0], how['seeds'][-1]
        seeds = f'seed {first}' if first == last else f'seeds {first} to {last}'
        names.setdefault((how['commit'], seeds), []).append(f'`{name}`')
    return ''.join(f'- measured at commit {commit}, {seeds}: {", ".join(found)}\n'
                   for (commit, seeds), found in names.items())


def peer(result: dict) -> str:
    keys = ('median_m', 'p95_m', 'lateral_median_m', 'longitudinal_median_m',
            'heading_median_deg', 'coverage_95', 'nees_mean')
    rows = [[name, *(row[key] for key in keys), str(row['n'])]
            for name, row in result['rows'].items()]
    jumps = ', '.join(f'`{name}` {found["followed"]} of {found["n"]}'
                      for name, found in result['jumps'].items())
    cost = ', '.join(f'`{name}` {ms:.2f}' for name, ms in result['cpu_ms_per_odometry'].items())
    return f"""### Beside a plain EKF, on drives of the demo (simulation)

The model of robot_localization, not its code, with the noise of its example and once tuned by
hand; it is told the true heading at the start. No drive was tuned on.

{markdown(['row', 'median m', 'p95 m', 'lateral m', 'longitudinal m', 'heading deg',
           'coverage 95 %', 'NEES', 'n'], rows)}
Jumps of GNSS that the pose followed: {jumps}. Milliseconds of processor time for each odometry
message, measured in turns: {cost}.
"""


def faults(result: dict) -> str:
    rows = result['rows']
    good = sum(bool(row['ok']) for row in rows)
    missed = ', '.join(result.get('not_honest', [])) or 'none'
    return f"""## Faults

`make faults`: in {good} of {len(rows)} faults of a simulated flat world, with real processes, the
node does as expected (diagnostic, honest poses or none, still running, all well afterwards); each
has a line in [faults.json](results/faults.json). Known misses, reported on `/diagnostics` but not
by the covariance: {missed}.
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

`make endurance`: one node process in the simulated flat world. It drives an hour at ten times the
speed (images 231 x 154 at 1 Hz, odometry 20 Hz), and three minutes in real time (1280 x 960 at
16 Hz, odometry 100 Hz). An image is dropped if a newer one came while the node was busy, and lost
if its subscription had no room for it.

{table}"""


def paper(result: dict) -> str:
    names = {'local': 'local', 'eccvw': "workshop paper's local", 'global': 'global'}
    kinds = [kind for kind in names if kind in result]
    keys = ['recall_at_1_local', 'recall_at_1_global', 'median_m', 'mean_m', 'p95_m']
    wide = {'recall_at_1_wide': 'within 100 m: local recall@1 %', 'median_wide_m': 'median m'} \
        if 'recall_at_1_wide' in result['global'][0] else {}
    rows = [[name, *(row.get(key) for key in (*keys, *wide))] for name, row in (
        *((f'{names[kind]} loss, seed {run["seed"]}', run) for kind in kinds
          for run in result[kind]),
        *((f'`{name}`', row) for name, row in result['controls'].items()))]
    titles = ['network', 'local recall@1 %', 'global recall@1 %', 'median m', 'mean m', 'p95 m',
              *wide.values()]
    rows.append(['chance', result['chance_recall_at_1_local'], *[None] * (len(titles) - 2)])
    table = markdown(titles, rows)

    # Local recall on the validation day: by rate, by variant, by step.
    steps = result['rate_steps']
    tried = [[f'rate {rate}, {steps} steps', *(result['rates'][kind][rate] for kind in kinds)]
             for rate in result['rates']['local']]
    tried += [[f'{name}, {steps} steps', *(found[kind] for kind in kinds)]
              for name, found in result.get('variants', {}).items()]
    curves = {kind: [curve for name, curve in result['validation_of_runs'].items()
                     if name.split()[0] == kind] for kind in kinds}
    tried += [[f'step {step}, mean of the seeds', *(
        sum(curve[step] for curve in curves[kind]) / len(curves[kind]) for kind in kinds)]
        for step in curves['local'][0]]
    validation = markdown(
        ['validation day, local recall@1 %', *(
            f'{names[kind]} loss{" (100 m)" if kind == "eccvw" else ""}' for kind in kinds),
         'local minus global'], [[*row, row[1] - row[-1]] for row in tried], 1)

    def interval(values: list[float]) -> str:
        low, value, high = (f'{number:+.2f}' for number in values)
        return f'**{value}** [{low}, {high}]'

    differences = markdown(
        ['minus global baseline', 'local recall@1, points', 'median m'],
        [[f'{names[name.split()[0]]} loss, prior of {100 if "100" in name else 50} m',
          interval(found['recall_at_1_local_points']), interval(found['median_m'])]
         for name, found in result['differences'].items()])

    train_days, val_days, test_days = result['days']
    goal = result['goal']
    towns = result.get('towns', 1)
    world = 'one simulated town and one route' if towns == 1 else (
        f'{towns} simulated towns with a route each, {result["route_km"]:.1f} km in all')
    alike = '' if towns == 1 else (
        f'A random batch has {result["neighbours_in_random_batch"]:.2f} images 5 to 50 m from '
        f'each of its own, a local one\n{result["images_in_local_batch"]:.0f} images of training '
        'days, and tiles alone of the other days, as in the papers.\n')
    figure = '' if towns == 1 else f"""
![Heat maps of 100 m and feature maps of both losses](results/paper_{result['plan']}.jpg)

The middle image of the test day in three towns: where each loss finds it, and what it looks at.
"""
    return f"""## The papers' claim: local loss against global baseline, plan `{result['plan']}`

`make results-paper PLAN={result['plan']}`: {world}; {train_days} days
train, {val_days} chooses rates and checkpoints, {test_days} test ({result['queries']} queries,
{result['places']} tiles). All losses saw {result['steps']} batches of {result['batch']} pairs of
the same images, on a frozen EfficientNet-Lite0 of ImageNet: only the layers above it learn. The
prior is a disc of 50 m around the truth; a tile within 5 m is right; ties are no hits.
Transductive, as in the papers: the tiles of the test days are in the database.
{alike}
{table}
Differences, with 95 % intervals over seeds and {result['stretches']} stretches of 200 m of route:

{differences}
The goal, {goal['points']:g} points of the local loss and both outside the interval, is
{'reached' if goal['reached'] else '**missed**'}; [training.md](training.md) has the plans and the
reasons.

{validation}{figure}
{result['device']}, torch {result['torch']}, {result['minutes']:.0f} minutes for the runs of the
first table. World and budget {result['world_hash']}. One line per query:
[{result['frames']}](results/{result['frames']}).
"""


def adaptation(result: dict) -> str:
    parts = ["""## Adaptation without truth

`make results-adapt`: weights that have learned from drives with ordinary GNSS, or from real
pictures whose labels are good to metres ([own_vehicle.md](own_vehicle.md#6-weights)). They are
not shipped.
"""]
    if rows := result.get('simulation'):
        keys = ('median_m', 'evidence_nats', 'coverage_95', 'n', 'filter_median_m',
                'filter_coverage_95')
        parts.append('### Simulated drives\n\n' + markdown(
            ['row', 'median m', 'evidence nats', 'cov. 95', 'n', 'filter median m',
             'filter cov. 95', 'the command'],
            [[f'`{name}`', *(row.get(key) for key in keys),
              '-' if 'refused' not in row else 'refuses' if row['refused'] else 'accepts']
             for name, row in rows.items()]))
        parts.append(
            f'Simulation: {result["simulation_data"]};\n'
            f'{result["simulation_steps"] or "as many as fit"} steps.\n' + """\
Single frames under a prior that is up to 18.5 m off on each axis; `filter` is the pose with GNSS
and odometry. `true_poses` learns from the true poses, `gnss_as_truth` takes the smoothed poses for
true, `shuffled` has the images in another order and must be refused. Measured when the position of
an ambiguous image was still the likeliest cell; most images of `before` are ambiguous.
""")
        if 'corrected_poses_m' in rows.get('adapted', {}):
            row = rows['adapted']
            parts.append('The poses that were learned from: smoothed from GNSS and odometry '
                         f'{row["smoothed_poses_m"]:.2f} m off in\nthe median, with the slow '
                         f'offset that their images show {row["corrected_poses_m"]:.2f} m.\n')
        parts.append(markdown(['goal', 'found', 'reached'], adaptation_goals(rows)))
    if sets := result.get('real'):
        parts.append('### Real pictures\n\n' + markdown(
            ['scored on', 'row', 'median m', 'lateral', 'evidence nats', 'cov. 95', 'n'],
            [[name, f'`{row}`', *(found[key] for key in (
                'median_m', 'lateral_median_m', 'evidence_nats', 'coverage_95', 'n'))]
             for name, rows in sets.items() for row, found in rows.items()]))
        risen = [name for name, rows in sets.items() if 'adapted' in rows and rows['adapted'][
            'evidence_nats'] is not None and rows['adapted']['evidence_nats']
            - rows['before']['evidence_nats'] >= 0.7]
        parts.append(
            f'Real. `adapted` learns from CVUSA and CVACT, the others from one of them; '
            f'{result["real_steps"]} steps each.\nThe goal, 0.7 nats more evidence on each set, '
            f'was {"reached on " + ", ".join(risen) if risen else "**missed** on all of them"}.\n')
    begun = ', '.join(f'{part}: weights {result[f"{part}_weights"]}'
                      for part in ('simulation', 'real') if part in result)
    parts.append(f'{result["hours"]:.1f} hours, {result["device"]}; begun with {begun}.\n')
    return '\n'.join(parts)


def adaptation_goals(rows: dict[str, dict]) -> list[list]:
    """What adaptation to simulated drives was to reach, what was found, and whether it did."""
    def of(row: str, key: str = 'median_m') -> float | None:
        return rows.get(row, {}).get(key)

    goals = []
    if of('before') and of('adapted'):
        ratio = of('adapted') / of('before')
        goals.append(['half the median error of a single frame', f'{ratio:.2f} of it',
                      ratio <= 0.5])
    if of('true_poses') and of('adapted'):
        ratio = of('adapted') / of('true_poses')
        goals.append(['within 25 % of training with true poses', f'{ratio:.2f} times that median',
                      ratio <= 1.25])
    if coverage := of('adapted', 'filter_coverage_95'):
        goals.append(["the filter's 95 % ellipse covers 0.90 to 0.98", f'{coverage:.2f}',
                      0.90 <= coverage <= 0.98])
    if 'shuffled' in rows:
        goals.append(['shuffled images are refused', '', of('shuffled', 'refused')])
    return [[goal, found, 'yes' if reached else '**no**'] for goal, found, reached in goals]


SECTIONS: dict[str, Callable[[dict], str]] = {
    'demo': demo, 'dense': dense, 'real': real, 'adapt': adaptation,
    'corruptions': corruptions, 'fusion': fusion, 'faults': faults,
    'endurance': endurance, 'paper': paper, 'paper_cpu_16': paper,
    'paper_towns': paper,
}


def write(docs: Path) -> Path:
    """Write ``results.md`` in a folder of documents from its results, and return its path."""
    paths = {name: docs / 'results' / f'{name}.json' for name in SECTIONS}
    results = {name: json.loads(path.read_text())
               for name, path in paths.items() if path.is_file()}
    parts = [INTRODUCTION, summary(results)]
    parts += [SECTIONS[name](result) for name, result in results.items()]
    page = docs / 'results.md'
    page.write_text('\n'.join(parts))
    return page


def run_page_command(module: str, description: str, write_page: Callable[[Path], Path],
                     arguments: list[str] | None) -> int:
    """Run the command that writes a page in a folder of documents and prints its path."""
    parser = argparse.ArgumentParser(
        prog=f'python -m {module}', description=description, epilog=f'example: python -m {module}')
    parser.add_argument('--docs', type=Path, default=DOCS, help='folder of the documents')

    def work(args: argparse.Namespace) -> None:
        try:
            print(write_page(args.docs))
        except KeyError as error:
            raise ValueError(f'the results in {args.docs}/results lack {error}; measure those '
                             'again with the command that the page names') from error

    return run_command(parser, arguments, work)


def main(arguments=None) -> int:
    return run_page_command('benchmarks.results', __doc__, write, arguments)


if __name__ == '__main__':
    sys.exit(main())
