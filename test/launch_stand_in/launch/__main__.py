import signal
import subprocess
import sys
import time

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, installed
from launch.launch_description_sources import PythonLaunchDescriptionSource


def main(argv: list[str]) -> int:
    path, *arguments = argv
    entities = PythonLaunchDescriptionSource(path).entities()
    if arguments == ['--show-args']:
        for entity in entities:
            if isinstance(entity, DeclareLaunchArgument):
                print(f"    '{entity.name}':\n        {entity.description}\n"
                      f"        (default: '{entity.default_value}')")
        return 0

    context = LaunchContext(dict(argument.split(':=', 1) for argument in arguments))
    commands, actions = [], list(entities)
    while actions:
        for result in reversed(actions.pop(0).execute(context)):
            # A command to start, or an action to carry out next.
            if isinstance(result, list):
                commands.append(result)
            else:
                actions.insert(0, result)
    if missing := [command[0] for command in commands if not installed(command)]:
        print(f'not installed: {missing[0]}', file=sys.stderr)
        return 1

    processes = []

    def pass_on(number, _):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    for command in commands:
        processes.append(subprocess.Popen(command, env=context.environment))
        print(f'started {" ".join(command)}', flush=True)
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    print(f'exit codes {codes}', flush=True)
    return int(any(codes))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
