"""Where a launch description comes from."""

import runpy


class PythonLaunchDescriptionSource:
    def __init__(self, path: str):
        self.path = path

    def entities(self):
        return runpy.run_path(self.path)['generate_launch_description']().entities
