"""docs/results.md from the JSON files that the benchmarks wrote below docs/results."""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import sys

DOCS = Path(__file__).resolve().parent.parent / 'docs'
INTRODUCTION = """# Results

Made by `python -m benchmarks.results` from the files in `docs/results`, each of which its own
command writes. **Everything here is simulation** unless a section says otherwise: rendered towns
that no training saw, other days than the orthophoto's. Nothing was measured on real imagery with
a real camera.
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

`make demo SEED=...`, then `python -m training.demo --pool FOLDERS --json docs/results/demo.json`.
A bag with camera (4 Hz), biased GNSS with jumps and an outage, and drifting odometry is replayed
in real time through the node; two CPU cores. Position of `base_link` at every image after the
first 5 s, outage included.

{table}
`refined` is what the node published; `prior` the same filter without matches; `image_blind` the
node with each image exchanged for one at least 200 m away; `raw_correlation` and `random_init`
the offline `Localizer` with those matchers.

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
        '`image_blind` the dense matcher\nwith images from elsewhere; `blind_trained` a network '
        'trained on grey images; `yaw_full_circle` searches every heading;\n`dense_wide_prior` '
        'has a prior of +-50 m. Coverage counts all frames; an ambiguous one claims the whole '
        f'window.\n\nDevice: {result["device"]}, torch {result["torch"]}; worlds ' + ', '.join(
            f'{part} {found}' for part, found in result['world_hash'].items()) + '.\n')
    return '\n'.join(parts)


def corruptions(result: dict) -> str:
    rows = [[name, result['clean']['median_m'], *(row['median_m'] for row in steps)]
            for name, steps in result.items() if isinstance(steps, list) and name != 'worlds']
    table = markdown(['median m', 'as it is', '1', '2', '3', '4', '5'], rows)
    return f"""## Spoiled images

`python -m benchmarks.corruptions --worlds ...`: single frames, severity 1 to 5.

{table}
![error, ambiguity and coverage against severity](results/corruptions.png)
"""


def fusion(result: dict) -> str:
    rows = [[drive, row['matcher_median_m'], row['gnss_odometry_median_m'], row['fused_median_m'],
             row['coverage_95']] for drive, row in result.get('matcher_replay', {}).items()]
    table = markdown(['drive', "matcher's median m", 'GNSS + odometry m', 'fused m',
                      'coverage 95 %'], rows)
    return f"""## Fusion: the errors of a real matcher, replayed

`make results-fusion`; real logs, spoofing, starts and what was missed: [fusion.md](fusion.md).
Errors of a published matcher on KITTI (not ours), along simulated GNSS and odometry, five seeds.

{table}"""


def faults(result: dict) -> str:
    rows = result['rows']
    good = sum(bool(row['ok']) for row in rows)
    return f"""## Faults

`make faults`: {good} of {len(rows)} faults through real processes end as they should (diagnostic,
honest pose or none, node running, all well afterwards), in a simulated flat world. A line each:
[faults.json](results/faults.json).
"""


SECTIONS: dict[str, Callable[[dict], str]] = {
    'demo': demo, 'dense': dense, 'corruptions': corruptions, 'fusion': fusion, 'faults': faults,
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
