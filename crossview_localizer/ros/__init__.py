"""Parts of the ROS nodes and of the doctor: messages, calibration, diagnostics, threads."""
