"""A stand-in for the part of ROS 2 `launch` that robotcar.launch.py uses; for tests only.

``python -m launch FILE name:=value ...`` does what ``ros2 launch`` does: it starts the processes,
passes SIGINT and SIGTERM on to them and ends when they have ended.  An error in the launch file or
in what it does when a process has ended, ends them all.  ``--show-args`` prints the arguments.
"""

import os


class LaunchContext:
    def __init__(self, arguments: dict[str, str]):
        self.launch_configurations = dict(arguments)
        self.environment = dict(os.environ)
        self.is_shutdown = False


class LaunchDescription:
    def __init__(self, entities):
        self.entities = list(entities)
