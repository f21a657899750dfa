"""Training data: prepared worlds, Oxford RobotCar, CVACT."""
