"""What the ROS nodes and the doctor are made of: messages, calibration, diagnostics, threads."""
