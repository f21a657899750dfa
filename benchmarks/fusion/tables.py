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
    replay = found['matcher_replay']['representative']
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
        f'{replay["matcher_median_m"]:.2f} m in the median for single frames, '
        f'{replay["fused_median_m"]:.2f} m fused',
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


def outages(found: dict) -> str:
    def errors(row):
        return f'{row["p50_m"]:.2f} / {row["p95_m"]:.2f} / {row["max_m"]:.2f}'

    return markdown(
        ['without GNSS', 'matches, median / p95 / worst m',
         'odometry only, median / p95 / worst m', 'n'],
        [[f'{length_s} s', errors(rows['match']), errors(rows['odometry']), rows['match']['n']]
         for length_s, rows in found['outage'].items()])


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
    return markdown(
        ['matches', 'Hz', 'median m', 'coverage 95 %, least of a drive', *AXES],
        [[words(name), rate[0], row['median_m'],
          f'{coverage(row["coverage_95"], COVERAGE[1])}, {row["least_coverage_95"]:.2f}',
          *(inside(row['axes'][axis]['nees_mean'], band) for axis in AXES)]
         for name, rates in rows.items() for rate, row in rates.items()]) + '\n' + wrapped(
        f'{rows["as_mapped"]["4_hz"]["n"]} segments of '
        f'{len(found["measured"]["lasting_errors"]["seeds"])} drives; the band of an axis is '
        f'{band[0]:.2f} to {band[1]:.2f}.')


def replay(found: dict) -> str:
    names = {'representative': 'these five pooled', '0014': '0014 (stress)'}
    rows = found['matcher_replay']
    order = sorted(rows, key=lambda name: (name == '0014', name == 'representative'))
    return markdown(
        ['drive', 'stands', 'matcher, median m', 'GNSS + odometry', 'fused', 'fused / matcher',
         'coverage 95 %'],
        [[names.get(name, name),
          f'{100 * rows[name]["stands"]:.0f} %' if 'stands' in rows[name] else '',
          rows[name]['matcher_median_m'], rows[name]['gnss_odometry_median_m'],
          rows[name]['fused_median_m'],
          number(rows[name]['fused_to_matcher'], 2, rows[name]['fused_to_matcher'] <= 0.5),
          rows[name]['coverage_95']] for name in order])


def logs(found: dict) -> str:
    return markdown(
        ['log', 'inputs', 'median m', 'p95 m', 'coverage 95 %', 'NEES (3)'],
        [[log, words(sensors), row['median_m'], row['p95_m'],
          coverage(row['coverage_95'], COVERAGE[1]), row['nees_mean']]
         for log, sets in found['logs'].items() for sensors, row in sets.items()])


def log_outages(found: dict) -> str:
    return markdown(
        ['log', 'inputs', 'seconds', 'fused', 'constant velocity', 'n'],
        [[log, words(sensors), length_s,
          f'{row["fused_end_median_m"]:.1f} / {row["fused_end_p95_m"]:.1f}',
          f'{row["constant_velocity_end_median_m"]:.1f} / '
          f'{row["constant_velocity_end_p95_m"]:.1f}', row['n']]
         for log, sets in found['log_outages'].items()
         for sensors, lengths in list(sets.items())[:1] for length_s, row in lengths.items()])


def peer(found: dict) -> str:
    result, names = found['peer_ekf'], {
        'gnss_only': 'GNSS alone', 'peer_ekf': 'plain EKF, example',
        'peer_ekf_tuned': 'plain EKF, by hand', 'prior': 'prior', 'refined': 'refined'}
    rows = []
    for name, title in names.items():
        row, jumps = result['rows'][name], result['jumps'].get(name)
        ours = name in ('prior', 'refined')
        rows.append([
            title, row['median_m'], row['p95_m'], row['lateral_median_m'],
            row['longitudinal_median_m'], number(row['heading_median_deg']),
            coverage(row['coverage_95'], COVERAGE[1]) if ours else row['coverage_95'],
            row['nees_mean'], f'{jumps["followed"]} of {jumps["n"]}' if jumps else '-',
            number(result['cpu_ms_per_odometry'].get(name))])
    ratio = result['prior_to_gnss_only']
    return markdown(
        ['', 'median m', 'p95 m', 'lateral m', 'longitudinal m', 'heading deg', 'coverage 95 %',
         'NEES (3)', 'jumps followed', 'ms per odometry'], rows) + '\n' + wrapped(
        f'The prior\'s median is {ratio["median_m"]:.2f} of GNSS alone (goal 0.85) and its p95 '
        f'{ratio["p95_m"]:.2f} (goal 0.5); it costs {result["cpu_prior_to_peer"]:.1f} times the '
        'processor time of the plain EKF.')


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
    """A row for each lie, without matches and with."""
    settings = ('_without_matches', '_with_matches')
    names = dict.fromkeys(name.removesuffix(setting) for name in found['lies']
                          for setting in settings if name.endswith(setting))
    rows = []
    for name in names:
        row = [words(name)]
        for setting in settings:
            poses = found['lies'][name + setting]
            row += [coverage(poses['coverage_95']), number(poses['nees'], 1),
                    f'{poses["median_m"]:.2f} ({poses["sigma_median_m"]:.1f})']
        rows.append(row)
    return markdown(
        ['lie', 'coverage 95 %', 'NEES (3)', 'median m (sigma)', 'with matches: coverage 95 %',
         'NEES (3)', 'median m (sigma)'], rows)


KITTI_NAMES = {'ORB': 'ORB', 'SPTAM': 'S-PTAM'}
KITTI_INPUTS = {'gnss': 'GNSS', 'gnss_matches': 'and matches',
                'gnss_replayed_matches': 'and replayed matches'}


def _kitti_rows(rows: dict):
    for name, row in rows.items():
        odometry, _, inputs = name.partition('_')
        yield KITTI_NAMES[odometry], KITTI_INPUTS[inputs], row


def kitti(found: dict) -> str:
    rows = []
    for odometry, inputs, row in _kitti_rows(found['kitti_vo']):
        lost = [end['without_pose'] for end in row['outages'].values()]
        rows.append([
            odometry, inputs, row['median_m'], row['p95_m'],
            coverage(row['coverage_95'], COVERAGE[1]), number(row['nees_mean'], 1),
            *(number(end['fused_end_median_m'], 1) for end in row['outages'].values()),
            ' and '.join(map(str, lost)) if any(lost) else '0'])
    return markdown(
        ['odometry', 'inputs', 'median m', 'p95 m', 'coverage 95 %', 'NEES (3)', 'after 60 s, m',
         'after 300 s, m', 'given up'], rows)


def husky(found: dict) -> str:
    row = found['husky']
    return wrapped(
        f'**Husky** (real wheels and GNSS, no truth): fixes that are held back for 30 s of each '
        f'minute are {row["median_m"]:.1f} m from the pose in the median, and inside its ellipse '
        f'in {100 * row["coverage_95"]:.0f} % of the cases.')


def smoother(found: dict) -> str:
    return markdown(
        ['odometry', 'inputs', 'filter, median m', 'smoothed', 'p95 m', 'coverage 95 %',
         'NEES (3)'],
        [[odometry, inputs, row['filter_median_m'], row['median_m'], row['p95_m'],
          coverage(row['coverage_95'], COVERAGE[1]), number(row['nees_mean'], 1)]
         for odometry, inputs, row in _kitti_rows(found['smoother'])])


def _searches(rows: dict) -> str:
    return markdown(
        ['', 'right', 'wrong', 'seconds, median', 'p95'],
        [[words(name), part(row['success'], row['n']), round(row['wrong'] * row['n']),
          number(row['seconds_median'], 0), number(row['seconds_p95'], 0)]
         for name, row in rows.items()])


def wrong_images(found: dict) -> str:
    return markdown(
        ['town', 'right images distrusted', 'wrong images noticed after s',
         'wrong images distrusted', 'right images used again after s'],
        [[row['town'], f'{100 * row["distrusted_before"]:.0f} %',
          number(row['noticed_after_s'], 1), f'{100 * row["distrusted_while_wrong"]:.0f} %',
          number(row['trusted_again_after_s'], 1)]
         for row in found['wrong_images']])


TABLES: dict[str, Callable[[dict], str]] = {
    'summary': summary, 'outages': outages, 'calibration': calibration, 'lasting': lasting,
    'replay': replay, 'logs': logs, 'log_outages': log_outages, 'peer': peer, 'spoof': spoof,
    'lies': lies, 'kitti': kitti, 'husky': husky, 'smoother': smoother,
    'rendered_searches': lambda found: _searches(found['search']),
    'searches': lambda found: _searches({key: found[key] for key in ('start', 'wrong_lock')}),
    'wrong_images': wrong_images,
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
