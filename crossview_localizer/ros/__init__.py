"""What the nodes share: messages, sensor calibration, diagnostics, processes."""
