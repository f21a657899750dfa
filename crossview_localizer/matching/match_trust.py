"""Whether images belong to the map beneath the pose, told from the heat maps of many frames.

The evidence of one frame, in nats, weighs "the frame was taken where the filter says" against
"it could have been taken anywhere in the window":

    e = log((1 - o) b + o),    b = n sum_c h_c q_c

with heat map h and prior q on the n cells of the window and the share o of frames that say nothing
(van, sun in the lens), which bounds what one frame can say against the pose.  A flat heat map
gives 0, one that has its mass about the prior up to log(window / prior), one that has it elsewhere
as little as log o.  Right images under a right pose stay far above 0 on average, images of another
place, or under a pose that is wrong, do not.  What is averaged is time, not frames: a camera that
is twice as fast is no better witness.
"""

import math

import numpy as np

from crossview_localizer.config import TrustConfig
from crossview_localizer.datatypes import Heatmap, PoseEstimate

# A frame after a pause stands for this much time and no more.
LONGEST_STEP_S = 1.0
# The first so many frames, over at least so long, decide whether matches are trusted at all.
FIRST_FRAMES, FIRST_S = 4, 1.0


# b = n sum_c h_c q_c       h, q normalised on the n known cells
def frame_evidence_nats(heatmap: Heatmap, prior: PoseEstimate, outlier_share: float) -> float:
    """Evidence of one heat map for the prior's position; 0 where it is flat."""
    x_m, y_m = heatmap.grid.cell_centres()
    known = np.isfinite(heatmap.log_probability)
    offsets = np.stack(np.meshgrid(x_m - prior.pose.x_m, y_m - prior.pose.y_m), -1)  # (R, C, 2)
    # Under a prior finer than the cells the sum would miss the cells' own width.
    spread = prior.covariance[:2, :2] + np.eye(2) * heatmap.grid.cell_m**2 / 12.0
    (xx, xy), (_, yy) = np.linalg.inv(spread)
    log_q = -0.5 * (xx * offsets[..., 0]**2 + 2 * xy * offsets[..., 0] * offsets[..., 1]
                    + yy * offsets[..., 1]**2)
    q = np.where(known, np.exp(log_q - log_q.max()), 0.0)
    h = np.where(known, np.exp(heatmap.log_probability), 0.0)
    mass = q.sum() * h.sum()
    ratio = known.sum() * float((h * q).sum() / mass) if mass > 0.0 else 0.0
    return math.log((1.0 - outlier_share) * ratio + outlier_share)


class MatchTrust:
    """The running mean of the frames' evidence, and with hysteresis whether matches are used.

    They are until the first frames have been weighed, which must then reach ``trust_nats``.
    """

    def __init__(self, config: TrustConfig):
        self._config = config
        self.trusted = True
        self.frame_nats = 0.0
        self.mean_nats = 0.0
        self._frames = 0
        self._observed_s = 0.0
        self._stamp_ns: int | None = None

    def add(self, heatmap: Heatmap, prior: PoseEstimate) -> bool:
        """Weigh one frame under the prior it was matched with; whether matches are trusted now."""
        self.frame_nats = frame_evidence_nats(heatmap, prior, self._config.outlier_share)
        since_s = 0.0
        if self._stamp_ns is not None:
            since_s = max(heatmap.stamp_ns - self._stamp_ns, 0) * 1e-9
        step_s = min(since_s, LONGEST_STEP_S)
        self._stamp_ns = heatmap.stamp_ns
        examined = self._is_examined
        self._frames += 1
        self._observed_s += step_s
        # The plain mean of all frames as long as they are few.
        share = max(1.0 - math.exp(-step_s / self._config.mean_s), 1.0 / self._frames)
        self.mean_nats += share * (self.frame_nats - self.mean_nats)
        if self._is_examined:
            proven = self.trusted and examined
            limit_nats = self._config.distrust_nats if proven else self._config.trust_nats
            self.trusted = self.mean_nats >= limit_nats
        return self.trusted

    def doubt(self) -> None:
        """Begin anew, with matches that have yet to prove themselves."""
        self.trusted = False
        self.mean_nats = 0.0
        self._frames, self._observed_s = 0, 0.0

    @property
    def beyond_doubt(self) -> bool:
        """Whether both this frame and those before it speak for the pose."""
        return self._is_examined and self.trusted and (
            min(self.frame_nats, self.mean_nats) >= self._config.trust_nats)

    @property
    def _is_examined(self) -> bool:
        return self._frames >= FIRST_FRAMES and self._observed_s >= FIRST_S
