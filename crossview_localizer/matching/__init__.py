"""The matchers: image and map to heat map to pose, and the supervisor that judges matches."""
