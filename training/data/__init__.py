"""Readers of training data: prepared drives, Oxford RobotCar, CVACT."""
