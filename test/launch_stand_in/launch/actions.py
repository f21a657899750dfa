"""Actions; `execute(context)` returns the actions to carry out in their place."""

import importlib.util
import shutil
import sys


class DeclareLaunchArgument:
    def __init__(self, name: str, *, default_value: str, description: str):
        self.name, self.default_value, self.description = name, default_value, description

    def execute(self, context):
        context.launch_configurations.setdefault(self.name, self.default_value)
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


class Shutdown:
    def __init__(self, *, reason: str):
        self.reason = reason


class TimerAction:
    def __init__(self, *, period: float, actions: list):
        self.period, self.actions = period, actions


class GroupAction:
    def __init__(self, actions: list):
        self.actions = actions

    def execute(self, context):
        return self.actions


class ExecuteProcess:
    """A command; ``on_exit(event, context)`` returns what to do when it has ended."""

    def __init__(self, *, cmd: list[str], output: str = 'log', additional_env=None,
                 on_exit=None):
        assert output in ('screen', 'log', 'both')
        self.command, self.on_exit = list(cmd), on_exit
        self.additional_env = additional_env or {}


def installed(command: list[str]) -> bool:
    """Tell whether `python -m MODULE` or a program on the PATH can be started."""
    if command[:2] == [sys.executable, '-m']:
        return importlib.util.find_spec(command[2]) is not None
    return shutil.which(command[0]) is not None
