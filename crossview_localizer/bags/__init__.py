"""Recorded drives: bags and the RobotCar raw formats, read without ROS processes."""
