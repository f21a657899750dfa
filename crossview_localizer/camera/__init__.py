"""From camera frames to what a matcher sees: views of the ground, motion between frames."""
