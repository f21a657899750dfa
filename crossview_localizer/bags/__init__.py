"""Reads, writes, plays and records bags, and reads the RobotCar raw formats."""
