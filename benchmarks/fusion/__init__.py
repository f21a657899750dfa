"""The fused pose: errors, outages, spoofing, starts and calibration."""
