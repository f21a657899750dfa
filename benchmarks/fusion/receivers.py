"""GNSS receivers of known errors: is each believed as far as it deserves, and no farther?

Routes are real; odometry and GNSS are simulated.  The filter has its defaults and no matches.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.estimates import EstimateLines, pooled
from benchmarks.fusion.filter_runs import in_order, moving_stretch, oxford_routes, run_filter
from crossview_localizer.config import FilterConfig

DRIVE_S, LEARNED_S = 480.0, 180.0  # the poses after the second count


@dataclass(frozen=True)
class SimulatedReceiver:
    """``wander_rms_m`` is in the plane, ``white_m`` and ``claims_m`` are sigmas on each axis."""

    wander_rms_m: float
    wander_tau_s: float
    white_m: float
    claims_m: float


RECEIVERS = {
    'as the parameters say': SimulatedReceiver(4.24, 60.0, 1.0, 1.0),
    'boasts': SimulatedReceiver(4.0, 120.0, 0.2, 0.2),
    'boasts and wanders slowly': SimulatedReceiver(4.0, 300.0, 0.2, 0.2),
    'corrected by satellites': SimulatedReceiver(1.4, 120.0, 0.3, 0.5),
    'RTK': SimulatedReceiver(0.1, 60.0, 0.02, 0.05),
}


def run_receivers(data: Path, seeds, lines: EstimateLines) -> dict:
    """Error, coverage and believed sigma of each receiver, once it has been learned."""
    routes, found = oxford_routes(data, 4), {}
    for seed in tqdm(seeds, desc='receivers', disable=None):
        truth = moving_stretch(routes, np.random.default_rng([seed, 31]), DRIVE_S + 1.0)
        odometry = drive_data.simulated_odometry(truth, np.random.default_rng([seed, 33]), hz=4.0)
        for name, receiver in RECEIVERS.items():
            fixes = drive_data.simulated_gnss(
                truth, np.random.default_rng([seed, 32]), receiver.wander_rms_m,
                receiver.wander_tau_s, receiver.white_m, hz=1.0)
            fixes = [replace(fix, covariance=receiver.claims_m**2 * np.eye(2)) for fix in fixes]
            estimates, *_ = run_filter(
                in_order(odometry, fixes), FilterConfig(), np.arange(LEARNED_S, DRIVE_S), truth)
            lines.add('receivers', str(seed), name, estimates)
            found.setdefault(name, []).append(estimates)
    return {name: asdict(RECEIVERS[name]) | pooled(parts).metrics() | {
        'least_coverage_95': min(part.metrics()['coverage_95'] for part in parts)}
        for name, parts in found.items()}
