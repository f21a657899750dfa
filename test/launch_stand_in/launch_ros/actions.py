"""`Node` of the stand-in: the package's own executables run as modules, others from the PATH."""

from pathlib import Path
import re
import sys

from launch.actions import ExecuteProcess

SETUP = Path(__file__).resolve().parents[3] / 'setup.py'


class PushRosNamespace:
    def __init__(self, namespace: str):
        self.namespace = namespace

    def execute(self, context):
        context.launch_configurations['ros_namespace'] = self.namespace
        return []


class Node(ExecuteProcess):
    def __init__(
        self, *, package: str, executable: str, name: str | None = None, namespace: str = '',
        output: str = 'log', parameters=(), remappings=(), arguments=(), ros_arguments=(),
        additional_env=None, on_exit=None,
    ):
        if package == 'crossview_localizer':
            module = re.search(rf"'{executable} = ([\w.]+):main'", SETUP.read_text())[1]
            command = [sys.executable, '-m', module]
        else:
            command = [executable]
        command += [*arguments, '--ros-args', *ros_arguments]
        if name:
            command += ['--remap', f'__node:={name}']
        if namespace:
            command += ['--remap', f'__ns:=/{namespace.strip("/")}']
        for source, target in remappings:
            command += ['--remap', f'{source}:={target}']
        for item in parameters:
            if isinstance(item, dict):
                for key, value in item.items():
                    text = str(value).lower() if isinstance(value, bool) else str(value)
                    command += ['--param', f'{key}:={text}']
            else:
                command += ['--params-file', str(item)]
        super().__init__(
            cmd=command, output=output, additional_env=additional_env, on_exit=on_exit)
