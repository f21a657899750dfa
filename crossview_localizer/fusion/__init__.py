"""The Kalman filter over odometry, GNSS and matches, its start and its checks of GNSS."""
