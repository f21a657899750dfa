"""Actions; `execute(context)` returns commands to start (argument lists) and further actions."""

import importlib.util
import shutil
import sys

TOOLS = {
    ('ros2', 'bag', 'play'): 'crossview_localizer.play_bag',
    ('ros2', 'bag', 'record'): 'crossview_localizer.record_bag',
}


class DeclareLaunchArgument:
    def __init__(self, name: str, *, default_value: str, description: str):
        self.name, self.default_value, self.description = name, default_value, description

    def execute(self, context):
        context.launch_configurations.setdefault(self.name, self.default_value)
        return []


class SetEnvironmentVariable:
    def __init__(self, name: str, value: str):
        self.name, self.value = name, value

    def execute(self, context):
        context.environment[self.name] = self.value
        return []


class IncludeLaunchDescription:
    def __init__(self, source, *, launch_arguments=()):
        self.source, self.arguments = source, dict(launch_arguments)

    def execute(self, context):
        context.launch_configurations.update(self.arguments)
        return self.source.entities()


class OpaqueFunction:
    def __init__(self, *, function):
        self.function = function

    def execute(self, context):
        return self.function(context)


class ExecuteProcess:
    """A command; `ros2 bag` is served by this package's own tools, which take its options."""

    def __init__(self, *, cmd: list[str], output: str = 'log'):
        assert output in ('screen', 'log', 'both')
        self.command = list(cmd)

    def execute(self, context):
        module = TOOLS.get(tuple(self.command[:3]))
        if module is None:
            return [self.command]
        options = self.command[3:]
        if '--remap' in options:
            # In this package's player renaming is an option of every node.
            at = options.index('--remap')
            rules = [word for rule in options[at + 1:] for word in ('--remap', rule)]
            options = [*options[:at], '--ros-args', *rules]
        return [[sys.executable, '-m', module, *options]]


def installed(command: list[str]) -> bool:
    """Tell whether `python -m MODULE` or a program on the PATH can be started."""
    if command[:2] == [sys.executable, '-m']:
        return importlib.util.find_spec(command[2]) is not None
    return shutil.which(command[0]) is not None
