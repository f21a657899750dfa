"""Write the tables of docs/fusion.md from the numbers in docs/results/fusion.json.

A table stands between the lines ``<!-- table NAME -->`` and ``<!-- end -->``.  What misses its
goal is bold.
"""

from collections.abc import Callable
import json
import math
from pathlib import Path
import re
import sys
import textwrap

from benchmarks.results import markdown, run_page_command

SHOWN_BELOW = 0.95  # the coverage of the lies that have a row
AXES = ('longitudinal', 'lateral', 'heading')
COVERAGE = (0.90, 0.98)
BLOCK = re.compile(r'(<!-- table (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def number(value: float | None, places: int = 2, good: bool = True) -> str:
    """A number with so many places, bold if it is not good."""
    if value is None:
        return '-'
    return f'{value:.{places}f}' if good else f'**{value:.{places}f}**'


def coverage(value: float, most: float = 1.0) -> str:
    """A coverage, bold where it misses its goal at two places."""
    return number(value, 2, COVERAGE[0] <= round(value, 2) <= most)


def inside(value: float, band) -> str:
    return number(value, 2, round(band[0], 2) <= round(value, 2) <= round(band[1], 2))


def part(value: float, count: int) -> str:
    return f'{round(value * count)} of {count}'


def words(name: str) -> str:
    return name.replace('_', ' ')


def wrapped(text: str) -> str:
    return textwrap.fill(text, 118, subsequent_indent='  ' * text.startswith('- ')) + '\n'


def summary(found: dict) -> str:
    """The main numbers, a line for each."""
    sixty, curve = found['outage']['60'], found['calibration']
    pooled = found['matcher_replay']['representative']
    shares = [row['fused_to_matcher'] for drive, row in found['matcher_replay'].items()
              if drive not in ('representative', '0014')]
    comma = found['logs']['comma2k19']['gnss_speed_gyro']
    google = found['logs']['google_nmea']['gnss_simulated_odometry']
    attacks = [found['spoof'][setting][attack] for setting in (
        'without_matches', 'with_matches') for attack in ('drag_off', 'jump')]
    told = min((part(row['detected'], row['n']) for row in attacks),
               key=lambda text: int(text.split()[0]))
    noticed_s = [row['noticed_after_s'] or math.inf for row in found['wrong_images']]
    start, lock = found['search']['start'], found['search']['wrong_lock']

    def matches(row, key):
        return f'{row["match"][key]:.2f} m'

    lines = [
        f'rendered towns (simulation): without GNSS for 60 s the error is '
        f'{matches(sixty, "p50_m")} in the median with matches (p95 {matches(sixty, "p95_m")}), '
        f'{sixty["odometry"]["p50_m"]:.2f} m with odometry only',
        f'rendered towns (simulation): the claimed 95 % ellipsoids hold '
        f'{100 * curve["coverage_95"]:.0f} % of the poses',
        f'**real** errors of a published matcher, GNSS and odometry simulated: '
        f'{pooled["matcher_median_m"]:.2f} m in the median for single frames, '
        f'{pooled["fused_median_m"]:.2f} m fused; on each drive {min(shares):.2f} to '
        f"{max(shares):.2f} of the matcher's (goal 0.5)",
        f'**real** logs without matches: {comma["median_m"]:.2f} m (u-blox, CAN speed, gyro) and '
        f'{google["median_m"]:.2f} m (F9K, simulated odometry); the covariance is too wide there',
        f'spoofing (simulated sensors): a drag-off of 0.5 m/s and a jump of 50 m are told in '
        f'{told} runs at least, without matches and with',
        f'images of another place (simulation): noticed after {min(noticed_s):.0f} to '
        f'{max(noticed_s):.0f} s with the dense matcher, not at all with the tile matcher',
        f'a start without a heading (simulation): found in {part(start["success"], start["n"])} '
        f'trials, in {start["seconds_median"]:.0f} s in the median, and wrong in '
        f'{part(start["wrong"], start["n"])}',
        f'a pose locked to a parallel street (simulation): mended in '
        f'{part(lock["success"], lock["n"])} trials, in {lock["seconds_median"]:.0f} s, and wrong '
        f'in {part(lock["wrong"], lock["n"])}']
    return ''.join(wrapped(f'- {line}') for line in lines)


def calibration(found: dict) -> str:
    rows = {'with matches': found['calibration'],
            'GNSS and odometry': found['calibration']['controls']['no_match']}
    band, axes_band = (found['calibration'][key] for key in ('nees_band', 'axes_nees_band'))

    def text(limits):
        return f'{limits[0]:.2f} to {limits[1]:.2f}'

    return markdown(
        ['', 'median m', 'coverage 95 %', f'NEES (band {text(band)})', 'longitudinal', 'lateral',
         f'heading (band {text(axes_band)})'],
        [[name, row['median_m'], coverage(row['coverage_95'], COVERAGE[1]),
          inside(row['nees_mean'], band),
          *(inside(row['axes'][axis]['nees_mean'], axes_band) for axis in AXES)]
         for name, row in rows.items()])


def lasting(found: dict) -> str:
    rows = found['lasting_errors']
    band = rows['as_mapped']['4_hz']['axes_nees_band']

    def both(rates, text) -> str:
        return ' / '.join(text(rates[rate]) for rate in ('4_hz', '1_hz'))

    return markdown(
        ['matches, at 4 / 1 Hz', 'median m', 'coverage 95 %', 'least of a drive', *AXES],
        [[words(name), both(rates, lambda row: number(row['median_m'])),
          both(rates, lambda row: coverage(row['coverage_95'], COVERAGE[1])),
          both(rates, lambda row: number(row['least_coverage_95'])),
          *(both(rates, lambda row, axis=axis: inside(row['axes'][axis]['nees_mean'], band))
            for axis in AXES)] for name, rates in rows.items()]) + '\n' + wrapped(
        f'{rows["as_mapped"]["4_hz"]["n"]} segments of '
        f'{len(found["measured"]["lasting_errors"]["seeds"])} drives; the band of an axis is '
        f'{band[0]:.2f} to {band[1]:.2f}.')


def logs(found: dict) -> str:
    return markdown(
        ['log', 'inputs', 'median m', 'p95 m', 'coverage 95 %', 'NEES (3)'],
        [[log, words(sensors), row['median_m'], row['p95_m'],
          coverage(row['coverage_95'], COVERAGE[1]), row['nees_mean']]
         for log, sets in found['logs'].items() for sensors, row in sets.items()])


def peer(found: dict) -> str:
    """What the table of docs/results.md comes to."""
    result = found['peer_ekf']
    prior, refined = (result['rows'][name] for name in ('prior', 'refined'))
    ratio, jumps = result['prior_to_gnss_only'], result['jumps']
    return wrapped(
        f'Without matches (`prior`) the median error is {prior["median_m"]:.2f} m, '
        f'{ratio["median_m"]:.2f} of GNSS alone (goal 0.85), its p95 {ratio["p95_m"]:.2f} of it '
        f'(goal 0.5), and the coverage {coverage(prior["coverage_95"], COVERAGE[1])}; it follows '
        f'{part_of(jumps["prior"])} jumps of GNSS, the plain EKF {part_of(jumps["peer_ekf"])}, '
        f'and costs {result["cpu_prior_to_peer"]:.1f} times its processor time. With matches '
        f'(`refined`): {refined["median_m"]:.2f} m, coverage '
        f'{coverage(refined["coverage_95"], COVERAGE[1])}.')


def part_of(jumps: dict) -> str:
    return f'{jumps["followed"]} of {jumps["n"]}'


def spoof(found: dict) -> str:
    names = {'jump': 'jump of 50 m', 'drag_off': '0.5 m/s', 'none': 'none'}
    rows = [[words(setting), title, part(row['detected'], row['n']),
             number(row['seconds_to_detect_median'], 0),
             f'{row["median_m"]:.2f} / {row["p95_m"]:.2f}',
             f'{row["outage_median_m"]:.2f} / {row["outage_p95_m"]:.2f}',
             coverage(row['coverage_95']), coverage(row['coverage_95_until_told'])]
            for setting in ('without_matches', 'with_matches')
            for attack, title in names.items() for row in [found['spoof'][setting][attack]]]
    return markdown(
        ['', 'attack', 'told', 'after s (median)', 'median / p95 m', "the outage's",
         'coverage 95 %', 'until told'], rows) + '\n' + wrapped(
        f'Alarms in {found["spoof"]["hours_without_attack"]:.1f} simulated hours without an '
        f'attack: {found["spoof"]["alarms_without_attack"]}. GNSS and odometry were said to drift '
        f'apart {found["spoof"]["drifts_apart_without_attack"]} times.')


def lies(found: dict) -> str:
    """A row for each lie that is covered worst, without matches and with, and what else was tried.

    The rows have a coverage below SHOWN_BELOW.
    """
    settings = ('_without_matches', '_with_matches')
    names = dict.fromkeys(name.removesuffix(setting) for name in found['lies']
                          for setting in settings if name.endswith(setting))
    rows, others = [], []
    for name in names:
        both = [found['lies'][name + setting] for setting in settings]
        if min(round(poses['coverage_95'], 2) for poses in both) >= SHOWN_BELOW:
            others.append(words(name))
            continue
        row = [words(name)]
        for poses in both:
            row += [coverage(poses['coverage_95']), number(poses['nees'], 1),
                    f'{poses["median_m"]:.2f} ({poses["sigma_median_m"]:.1f})']
        rows.append(row)
    return markdown(
        ['lie', 'coverage 95 %', 'NEES (3)', 'median m (sigma)', 'with matches: coverage 95 %',
         'NEES (3)', 'median m (sigma)'], rows) + '\n' + wrapped(
        f'The coverage is {SHOWN_BELOW:.2f} or more in the rows: {", ".join(others)}.')


def receivers(found: dict) -> str:
    return markdown(
        ['receiver', 'wander in the plane m (over s)', 'white m', 'claims m', 'median m',
         'coverage 95 %', 'least of a drive', 'sigma m'],
        [[name, f'{row["wander_rms_m"]:g} ({row["wander_tau_s"]:g})', f'{row["white_m"]:g}',
          f'{row["claims_m"]:g}', row['median_m'], coverage(row['coverage_95'], COVERAGE[1]),
          row['least_coverage_95'], row['sigma_median_m']]
         for name, row in found['receivers'].items()]) + '\n' + wrapped(
        f'{len(found["measured"]["receivers"]["seeds"])} drives of eight minutes, from the fourth '
        'minute on.')


KITTI_NAMES = {'ORB': 'ORB', 'SPTAM': 'S-PTAM'}
KITTI_INPUTS = {'gnss': 'GNSS', 'gnss_matches': 'and matches',
                'gnss_replayed_matches': 'and replayed matches'}


def kitti(found: dict) -> str:
    """A row for each odometry and inputs: the filter, its outages, and the smoother; the Husky."""
    def accuracy(row):
        return [row['median_m'], row['p95_m'], coverage(row['coverage_95'], COVERAGE[1]),
                number(row['nees_mean'], 1)]

    rows, husky = [], found['husky']
    for name, row in found['kitti_vo'].items():
        odometry, _, inputs = name.partition('_')
        ends = row['outages'].values()
        lost = [end['without_pose'] for end in ends]
        rows.append([
            KITTI_NAMES[odometry], KITTI_INPUTS[inputs], *accuracy(row),
            *(number(end['fused_end_median_m'], 1) for end in ends),
            ' and '.join(map(str, lost)) if any(lost) else '0',
            *accuracy(found['smoother'][name])])
    return markdown(
        ['odometry', 'inputs', 'median m', 'p95 m', 'coverage 95 %', 'NEES (3)', 'after 60 s, m',
         'after 300 s, m', 'given up', 'smoothed: median m', 'p95 m', 'coverage 95 %',
         'NEES (3)'], rows) + '\n' + wrapped(
        f'**Husky** (real wheels and GNSS, no truth): fixes that are held back for 30 s of each '
        f'minute are {husky["median_m"]:.1f} m from the pose in the median, and inside its '
        f'ellipse in {100 * husky["coverage_95"]:.0f} % of the cases.')


def searches(found: dict) -> str:
    rows = {f'{words(name)}, rendered towns': row for name, row in found['search'].items()} | {
        f'{words(name)}, simulated heat maps': found[name] for name in ('start', 'wrong_lock')}
    return markdown(
        ['', 'right', 'wrong', 'seconds, median', 'p95'],
        [[name, part(row['success'], row['n']), round(row['wrong'] * row['n']),
          number(row['seconds_median'], 0), number(row['seconds_p95'], 0)]
         for name, row in rows.items()])


TABLES: dict[str, Callable[[dict], str]] = {
    'summary': summary, 'calibration': calibration, 'lasting': lasting, 'logs': logs,
    'peer': peer, 'spoof': spoof, 'lies': lies, 'receivers': receivers, 'kitti': kitti,
    'searches': searches,
}


def filled(page: str, found: dict) -> str:
    """The page with the tables of these results.

    Raises ValueError for a table that is not known, and KeyError where a result is missing.
    """
    def table(block: re.Match) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise ValueError(f'table {name!r} is none of {", ".join(TABLES)}')
        return begin + TABLES[name](found) + end

    return BLOCK.sub(table, page)


def fill(docs: Path) -> Path:
    """Fill in the tables of ``fusion.md`` in a folder of documents, and return its path."""
    page, results = docs / 'fusion.md', docs / 'results/fusion.json'
    found = json.loads(results.read_text(encoding='utf-8'))
    page.write_text(filled(page.read_text(encoding='utf-8'), found), encoding='utf-8')
    return page


def main(arguments=None) -> int:
    return run_page_command('benchmarks.fusion.tables', __doc__, fill, arguments)


if __name__ == '__main__':
    sys.exit(main())
