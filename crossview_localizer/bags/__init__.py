"""Recorded drives: bags read, written, played and recorded, and the RobotCar raw formats."""
