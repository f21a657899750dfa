"""The Kalman prior: what it believes of odometry, GNSS and matches, and how it starts."""
