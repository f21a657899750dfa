"""The end-to-end demo: a simulated drive through real ROS 2 processes."""
