"""Evidence for the pose of the filter: how well the heat maps of many frames agree with it.

The evidence of one frame, in nats, compares two hypotheses: the frame was taken at the pose of the
filter, or it was taken anywhere in the window:

    e = log((1 - o) b + o),    b = n sum_c h_c q_c

Here h is the heat map and q the prior on the n cells of the window.  The share o of frames that
say nothing (a van, sun in the lens) limits how much one frame can count against the pose.  A flat
heat map gives 0.  A heat map with its mass around the prior gives up to log(window / prior); one
with its mass elsewhere gives as little as log o.  For the right images at the right pose the mean
is far above 0; for images of another place, or at a wrong pose, it is not.  The mean is over time,
not over frames: a camera with twice the rate gives no more evidence.

A street that looks like the right one gives evidence too, but less than the right one and not for
long.  A pose that images have spoken against is therefore proven again only by a sum of evidence,
relative to the best of this drive: a cumulative sum test (Page 1954),

    l <- min(T, l - (e / u - a) / (1 - a) dt),    from l = T until l <= 0

with u the best mean evidence of the drive, which fades, a = ALIKE_SHARE and T = PROOF_S.
"""

import math

import numpy as np

from crossview_localizer.datatypes import Heatmap, PoseEstimate

OUTLIER_SHARE = 0.05    # share of frames that say nothing, or something wrong, at the right pose
MEAN_S = 5.0            # the evidence is averaged over this time
LONGEST_STEP_S = 1.0    # a frame after a pause counts for at most this time
# A street that looks alike may give this share of the best evidence for ever.  The best evidence
# proves a pose in this time.
ALIKE_SHARE, PROOF_S = 0.3, 6.0
# The best evidence is the largest mean, which fades in this time to no less than LEAST_BEST_NATS.
# At first it is that of a matcher that knows its places.
BEST_FADES_S, FIRST_BEST_NATS, LEAST_BEST_NATS = 120.0, 5.0, 1.0
# A judgement needs at least this many frames over at least this time.
FIRST_FRAMES, FIRST_S = 4, 1.0


# b = n sum_c h_c q_c       h, q normalised on the n known cells
def frame_evidence_nats(
    heatmap: Heatmap, prior: PoseEstimate, outlier_share: float = OUTLIER_SHARE,
) -> float:
    """Evidence of one heat map for the prior's position; 0 where it is flat."""
    x_m, y_m = heatmap.grid.cell_centres()
    dx_m, dy_m = x_m - prior.pose.x_m, (y_m - prior.pose.y_m)[:, None]
    known = np.isfinite(heatmap.log_probability)
    # The width of a cell is added: a prior narrower than a cell could fall between the centres.
    spread = prior.covariance[:2, :2] + np.eye(2) * heatmap.grid.cell_m**2 / 12.0
    (xx, xy), (_, yy) = np.linalg.inv(spread)
    log_q = -0.5 * (xx * dx_m**2 + 2 * xy * dx_m * dy_m + yy * dy_m**2)     # (R, C)
    q = np.where(known, np.exp(log_q - log_q.max()), 0.0)
    h = np.where(known, np.exp(heatmap.log_probability), 0.0)
    mass = q.sum() * h.sum()
    ratio = known.sum() * float((h * q).sum() / mass) if mass > 0.0 else 0.0
    return math.log((1.0 - outlier_share) * ratio + outlier_share)


class MeanEvidence:
    """The running mean of the evidence of frames, and the proof of a pose that was wrong."""

    def __init__(self):
        self._stamp_ns: int | None = None
        self._best_nats = FIRST_BEST_NATS
        self.forget()

    def forget(self) -> None:
        """Start the mean again with the next frame."""
        self.frame_nats = 0.0
        self.mean_nats = 0.0
        self.lacking_s = 0.0    # for how long the best evidence has to speak for the pose
        self._frames = 0
        self._observed_s = 0.0

    def add(self, heatmap: Heatmap, prior: PoseEstimate) -> None:
        """Add a frame, given by its heat map and the prior of its match."""
        self.frame_nats = frame_evidence_nats(heatmap, prior)
        since_s = 0.0
        if self._stamp_ns is not None:
            since_s = max(heatmap.stamp_ns - self._stamp_ns, 0) * 1e-9
        step_s = min(since_s, LONGEST_STEP_S)
        self._stamp_ns = heatmap.stamp_ns
        self._frames += 1
        self._observed_s += step_s
        # The mean of the first few frames is their plain mean.
        share = max(1.0 - math.exp(-step_s / MEAN_S), 1.0 / self._frames)
        self.mean_nats += share * (self.frame_nats - self.mean_nats)
        if self.lacking_s > 0.0:
            beyond = (self.frame_nats / self._best_nats - ALIKE_SHARE) / (1.0 - ALIKE_SHARE)
            self.lacking_s = min(max(self.lacking_s - beyond * step_s, 0.0), PROOF_S)
        self._best_nats = max(self._best_nats * math.exp(-step_s / BEST_FADES_S),
                              self.mean_nats if self.is_enough else LEAST_BEST_NATS,
                              LEAST_BEST_NATS)

    def require_proof(self) -> None:
        """Begin a new proof: the images have spoken against the pose."""
        self.lacking_s = PROOF_S

    @property
    def is_enough(self) -> bool:
        """Whether there are enough frames for a judgement."""
        return self._frames >= FIRST_FRAMES and self._observed_s >= FIRST_S
