"""Make docs/performance.md and its plots from docs/results/bench.json."""

import json
from pathlib import Path
import sys

import matplotlib
from matplotlib import pyplot

from benchmarks.results import markdown, run_page_command
from crossview_localizer.maps.embedding_map import CACHE_BYTES, PRELOAD_BYTES

STORE_NAMES = {'dense': 'dense matcher', 'tiles': 'tile matcher'}


def milliseconds(row: dict) -> list[float]:
    return [row['p50_ms'], row['p95_ms'], row['p99_ms']]


def about(part: dict) -> str:
    versions = ', '.join(
        f'{name} {version}' for name, version in part['versions'].items() if version)
    return (f'{part["device"]}, {part["cores"]} cores, Python {part["python"]}, {versions}; '
            f'{part["date"]}, load before {part["load_before"]}.')


def live(name: str, part: dict) -> str:
    head = ['ms', 'p50', 'p95', 'p99']
    stages = [[stage, *milliseconds(row)] for stage, row in part['stages'].items()]
    stages += [['**end to end**', *milliseconds(part['end_to_end'])],
               ['all but forward and wait', *milliseconds(part['all_but_forward'])]]
    memory = part['runs'][part['quoted']]['memory_mb']
    runs = [[label, run['frames_per_s'], *milliseconds(run['end_to_end']), run['used_share'],
             run['memory_mb']['all']] for label, run in part['runs'].items()]
    bare = [[label, *milliseconds(row)] for label, row in part['bare_forward'].items()]
    return f"""### {'GPU' if name == 'gpu' else 'CPU'}

{about(part)} Stages of the run "{part['quoted']}":

{markdown(head, stages)}
`wait` is the time until the previous image is done, plus the time from the end of the forward
pass until odometry has reached the stamp of the image. `decode` includes the check for blind
images; `publish` ends with the last `publish()`.

{markdown(['network, images', 'frames/s', 'p50 ms', 'p95 ms', 'p99 ms', 'used', 'MB'], runs)}
Memory of the node in that run: {memory['own']:.0f} MB of its own, {memory['files']:.0f} MB of
libraries and other files, which the system shares between processes and can drop, and
{memory['shared']:.0f} MB of shared memory of DDS.

The network alone, while nothing else runs:

{markdown(head, bare)}"""


def cost(result: dict) -> str:
    """CPU time and memory of the node by part."""
    if 'cost' not in result:
        return ''
    part = result['cost']
    steps = [[f'**{step}**' if step == 'whole' else step,
              part['torch']['cpu_ms'][step], part['onnx']['cpu_ms'][step]]
             for step in part['torch']['cpu_ms']]
    memory = [[f'**{name}**' if name == 'all' else name, f'{mb:.0f}',
               f'{part["onnx"]["memory_mb"][name]:.0f}']
              for name, mb in part['torch']['memory_mb'].items()]
    return f"""### What an image costs

{about(part)} CPU time of an image of {part.get('images_are', '1280 x 960 px')} in the offline
`Localizer`; other work on the machine hardly changes it. `match` is the correlation, `pose` turns
the heat map into a pose.

{markdown(['CPU ms, p50', 'torch', 'ONNX Runtime'], steps)}
With ONNX Runtime, all steps together take
{part['onnx']['cpu_ms']['whole'] / part['onnx']['cpu_ms']['forward']:.2f} times as long as the
forward pass (goal: at most 1.8); with torch,
{part['torch']['cpu_ms']['whole'] / part['torch']['cpu_ms']['forward']:.2f} times.

{markdown(['MB of memory', 'torch', 'ONNX Runtime'], memory)}
This process also reads the bag. torch holds the map and computes the matches: the goal of 350 MB
needs a node without it. A limit on the arenas of the C library saved nothing.
"""


def goals(result: dict) -> str:
    """The goals: the median of all rounds, and the range of the rounds where they differ.

    A ratio is that of the medians, of the least and of the largest numbers.
    """
    versions = zip(*(goal_rows(result | result.get(key, {})) for key in ('', 'low', 'high')))
    rows = []
    for (*row, reached), low, high in versions:
        values = [row[2], low[2], high[2]]
        rows.append([
            *row, '' if low[2] == high[2] else f'{min(values):.2f} to {max(values):.2f}',
            '' if reached is None else 'reached' if reached else '**missed**'])
    return markdown(['goal', 'wanted', 'measured', 'range of the rounds', ''], rows)


def goal_rows(result: dict) -> list[tuple]:
    """Each goal: what, how much is wanted, what was measured, and whether it is reached."""
    rows = []
    for name, part in result.items():
        if name == 'cpu':
            rows.append(('frames per second with the player on the same cores, fastest run',
                         '>= 10', part['frames_per_s'], part['frames_per_s'] >= 9.95))
            for run, values in part['runs'].items():
                p99 = values['end_to_end']['p99_ms']
                rows.append(
                    (f'p99 of the live path, {run} offered, ms', '< 100', p99, p99 < 100))
            ratio = part['end_to_end']['p50_ms'] / part['bare_forward_p50_ms']
            rows.append((f'p50 of the live path, {part["quoted"]}, / bare forward pass', '<= 1.8',
                         round(ratio, 2), ratio <= 1.8))
            memory_mb = part['runs'][part['quoted']]['memory_mb']['all']
            rows.append((f'resident memory of the node, {part["quoted"]}, MB', '<= 350', memory_mb,
                         memory_mb <= 350))
        elif name == 'gpu':
            p99, rest = part['end_to_end']['p99_ms'], part['all_but_forward']['p50_ms']
            rows += [('GPU: p99 of the live path, ms', '<= 10', p99, p99 <= 10),
                     ('GPU: all stages except the forward pass, p50 ms', '<= 4', rest, rest <= 4)]
    build, window = result['map_build'], result['window']
    slowest = max(row['open_s'] for row in result['map_size'])
    p99, preload_s = window['warm']['p99_ms'], window['preload_1_km2_s']
    pixels = [part['pixels_per_block_pixel'] for part in (build, build['corridor'])]
    return [
        *rows,
        ('time to build the map of an area / its forward passes', '<= 1.2',
         build['ratio_to_bare'], build['ratio_to_bare'] <= 1.2),
        ('pixels described per pixel kept, area', '<= 1.25', pixels[0], pixels[0] <= 1.25),
        ('pixels described per pixel kept, corridor', '<= 1.6', pixels[1], pixels[1] <= 1.6),
        ('opening any of the maps, s', '< 1', slowest, slowest < 1),
        ('reading a square kilometre ahead, s', '< 1', preload_s, preload_s < 1),
        ('warm window at 30 m/s, p99 ms', '< 5', p99, p99 < 5),
        ('images per second of training / of its steps alone', '-',
         result['training']['share_of_bound'], None)]


def sizes(result: dict) -> str:
    return markdown(
        ['store', 'km2', 'tiles', 'GB', 'in full', 'MB per km2', 'open s', 'memory MB',
         'first window ms'],
        [[STORE_NAMES[row['store']], row['km2'], row['tiles'], row['gb'],
          'yes' if row['written_in_full'] else 'sparse', row['bytes_per_km2'] / 1e6,
          row['open_s'], row['memory_mb'], row['first_window_ms']]
         for row in result['map_size']])


def peers(result: dict) -> str:
    """Each step and its peers; the ratio is that of the p50 to the first way of the step."""
    rows = []
    for step, part in result['peers'].items():
        timed = {way: row for way, row in part.items()
                 if isinstance(row, dict) and 'p50_ms' in row} if isinstance(part, dict) else {}
        if not timed:  # the versions, for example
            continue
        first_ms = next(iter(timed.values()))['p50_ms']
        rows += [[step.replace('_', ' '), way, row['p50_ms'] / first_ms, *milliseconds(row),
                  row.get('median_m')] for way, row in timed.items()]
    return markdown(
        ['step', 'way', 'ratio', 'p50 ms', 'p95 ms', 'p99 ms', 'median error m'], rows, 3)


def training(result: dict) -> str:
    part = result['training']
    ranks = [[name, count, row['steps_per_s']]
             for recipe, name in STORE_NAMES.items()
             for count, row in part.get('ranks', {}).get(recipe, {}).items()]
    sampler = markdown(
        ['places', 'made in s', 'ms per batch of 64', 'MB'],
        [[row['places'], row['made_s'], row['batch_ms'], row['memory_mb']]
         for row in part['sampler']])
    return f"""The dense recipe on one core: {part['frames_per_s']} frames/s; its steps alone
{part['device_bound_frames_per_s']}, its loader alone {part['loader_frames_per_s']}.

{markdown(['training of the', 'ranks of torchrun', 'steps/s'], ranks) if ranks else ''}
The papers' sampler, with a tile every 5 m of street:

{sampler}"""


def renderer(result: dict) -> str:
    part = result['renderer']
    return markdown(
        ['', 'frames', 'frames/s', 'peak MB'],
        [[name, row['frames'], row['frames_per_s'], row['peak_mb']]
         for name in ('render', 'convert') for row in part[name]])


def hour(result: dict) -> str:
    if 'hour' not in result:
        return ''
    part = result['hour']
    rows = [[name, drive[name]['duration_s'], drive[name]['frames'], drive[name]['frames_per_s'],
             ' / '.join(str(value) for value in drive[name]['peak_mb_by_quarter'])]
            for name in ('render', 'convert') for drive in part['drives']]
    longest = part['drives'][-1]['rows']
    return f"""
Memory over an hour (`python -m benchmarks.speed --only hour`, {part['date']}, load before
{part['load_before']}), images at {part['rate_hz']:g} Hz, all other sensors at the simulation's
full rates: the longest drive has {longest['vo/vo.csv']} steps of visual odometry,
{longest['gps/gps.csv']} fixes and {longest['gps/ins.csv']} poses of the INS.

{markdown(['', 'drive s', 'frames', 'frames/s', 'peak MB in each quarter of the run'], rows)}"""


def building(build: dict) -> str:
    """The cost of the parts of a map."""
    rows = [[name, part['km2'], round(part['km2_per_s'] * 1e6), part['ratio_to_bare'],
             part['pixels_per_block_pixel'], part['ratio_to_each_pixel_once']]
            for name, part in (('area', build), ('corridor', build['corridor']))]
    return markdown(
        ['map of', 'km2', 'm2/s', 'time / forward passes', 'pixels per kept pixel',
         'time / forward passes without overlap'], rows)


def page(result: dict) -> str:
    build, window = result['map_build'], result['window']
    workers = ', '.join(
        f'{count}: {row["wall_s"]} s and {row["peak_mb"]} MB'
        for count, row in build['workers'].items())
    written_gb = max(row['gb'] for row in result['map_size'] if row['written_in_full'])
    most = max(result.get('rounds', {}).values(), default=1)
    rounds = f'medians of {most} rounds, but for training, sizes and renderer' if most > 1 else (
        'one run')
    lives = '\n'.join(live(name, result[name]) for name in ('cpu', 'gpu') if name in result)
    no_gpu = '' if 'gpu' in result else (
        'Nothing was measured on a GPU, `precision: half` included; `python -m '
        'benchmarks.speed.gpu_check` does it in ten minutes without ROS, `make bench DEVICE=cuda` '
        'in full.\n')
    return f"""# Performance

Look up here how long each step takes, and how the time grows with map, image rate and cores. To
make the node faster, most effective first: install ONNX Runtime (`pip install onnx onnxruntime`;
the node then uses it on a CPU), use one thread if there are few cores, and set `image_transport:
raw` if the camera is on the same machine.

`make bench` measures everything again and writes [bench.json](results/bench.json). These numbers
are of one machine: {rounds}.
**Simulation**: a rendered town, with images of 320 x 240 enlarged to 1280 x 960, which cost the
node as much time as real images of that size.

## Goals

{goals(result)}
## The live path

Node and player are separate processes; `play_bag` publishes raw images of 3.7 MB, the node runs
the shipped dense weights with one thread. Times are from the entry of the image callback until the
last `publish()` has returned, with batch 1.

{lives}
{cost(result)}
{no_gpu}
## Maps

{building(build)}
Each part of a map passes the network together with 8 m of context, which its neighbours compute
again: "pixels per kept pixel" counts that. The last column compares with forward passes that
compute every pixel once. With twice the context, 1 - cosine of a descriptor changes by 2.7e-5 on
average, less than by storing it in 8 bits (4.0e-5), and the log-probability of the true pose by
less than 0.001 (45 frames of three simulated drives).

Wall time and memory of all processes, by number of `--workers`: {workers or '-'}; the maps are
{'identical' if build.get('same_bytes') else 'not compared'}. In a town this small, starting the
processes takes as long as their work.

{sizes(result)}
Opening a map reads its header; descriptors are read as the vehicle comes near. Maps up to
{PRELOAD_BYTES >> 20} MB are read as a whole; of larger ones at most {CACHE_BYTES >> 20} MB stay in
memory. A sparse map of this table claims to hold all tiles, but holds only those about its middle.

Windows at {window['speed_mps']:g} m/s, {window['hz']:g} per second, map of {window['map_gb']} GB:
cold {window['cold_ms']} ms, then p50 {window['warm']['p50_ms']},
p95 {window['warm']['p95_ms']}, p99 {window['warm']['p99_ms']} ms; memory
{window['memory_first_mb']:.0f} to
{window['memory_last_mb']:.0f} MB, until the cache is full. Reading a square kilometre ahead of
time takes {window['preload_1_km2_s']} s.

![file size and opening time against area; sampler against places](results/bench.png)

## Training

{training(result)}
## Renderer and converter

{renderer(result)}
One process, images of {' x '.join(map(str, result['renderer']['image_px']))} px, start included.
One drive is three times as long as the other: memory must not grow.
{hour(result)}
## The demo

The demo prints the time of each stage. By the CPU time of its processes, two free cores need about
230 s for `make demo` (138 s are the replay in real time) and 80 s for `QUICK=1`; no run on free
cores was timed.

## Peers

{peers(result)}
The ratio compares the p50 with that of the first way of the step.

| step | what is timed |
|---|---|
| networks | the ground branch on one frame |
| tile match | one descriptor against a window of {result['peers']['tile_match']['tiles']} tiles |
| dense match | five headings in a window of 15 m each way |
| filter | one odometry increment of 0.02 s, against bare matrices of the same size |
| drive | each GNSS and odometry message of a drive without images |

## Not measured

- Any GPU, unless a section above says so.
- Maps written in full beyond {written_gb:g} GB; the speed of machines that share the building of
  a map.
- The node on images that arrive over a network.
"""


def draw(result: dict, path: Path) -> None:
    """How file size, opening time and the sampler grow."""
    matplotlib.use('Agg')
    figure, (size, opening, sampler) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for store, name in STORE_NAMES.items():
        found = [row for row in result['map_size'] if row['store'] == store]
        if not found:
            continue
        km2 = [row['km2'] for row in found]
        size.loglog(km2, [row['gb'] for row in found], 'o-', label=name)
        opening.loglog(km2, [row['open_s'] for row in found], 'o-', label=name)
    size.set(xlabel='area, km2', ylabel='file, GB')
    opening.set(xlabel='area, km2', ylabel='open, s')
    opening.axhline(1.0, color='0.6', linestyle='--', linewidth=1.0)
    opening.text(0.02, 1.1, 'goal: below 1 s', transform=opening.get_yaxis_transform(),
                 color='0.4')
    opening.set_ylim(0.0005, 30.0)  # room for the legend above the goal
    found = result['training']['sampler']
    places = [row['places'] for row in found]
    sampler.loglog(places, [row['made_s'] for row in found], 'o-', label='made, s')
    sampler.loglog(places, [row['batch_ms'] for row in found], 's-', label='batch of 64, ms')
    sampler.set(xlabel='places of the sampler', ylabel='s, ms')
    for axes in (size, opening, sampler):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(docs: Path) -> Path:
    """Write ``performance.md`` and its plots in a folder of documents, and return its path."""
    result = json.loads((docs / 'results/bench.json').read_text())
    draw(result, docs / 'results/bench.png')
    written = docs / 'performance.md'
    written.write_text(page(result))
    return written


def main(argv: list[str] | None = None) -> int:
    return run_page_command('benchmarks.speed.page', __doc__, write, argv)


if __name__ == '__main__':
    sys.exit(main())
