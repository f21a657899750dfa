import signal
import subprocess
import sys
import time
from types import SimpleNamespace

from launch import LaunchContext
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    installed,
    Shutdown,
    TimerAction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource

SIGTERM_AFTER_S = 5.0  # as the real one: a process that is still starting may miss SIGINT


class Launch:
    """What runs, and what is still to be done."""

    def __init__(self, context: LaunchContext):
        self.context = context
        self.processes: list[tuple[subprocess.Popen, ExecuteProcess]] = []
        self.timers: list[tuple[float, TimerAction | None]] = []
        self.failed = False

    def carry_out(self, actions) -> None:
        for action in actions:
            if isinstance(action, Shutdown):
                print(f'shutdown: {action.reason}', flush=True)
                self.stop(signal.SIGINT)
            elif isinstance(action, TimerAction):
                self.timers.append((time.monotonic() + action.period, action))
            elif isinstance(action, ExecuteProcess):
                if not installed(action.command):
                    raise FileNotFoundError(f'not installed: {action.command[0]}')
                self.processes.append((
                    subprocess.Popen(action.command, env={
                        **self.context.environment, **action.additional_env}), action))
                print(f'started {" ".join(action.command)}', flush=True)
            else:
                self.carry_out(action.execute(self.context))

    def guard(self, function, *arguments) -> None:
        """Call a function; an error in it ends the launch, as with the real one."""
        try:
            function(*arguments)
        except (ValueError, RuntimeError, OSError) as error:
            print(f'Caught exception in launch: {error}', flush=True)
            self.failed = True
            self.stop(signal.SIGINT)

    def stop(self, number: int) -> None:
        if not self.context.is_shutdown:
            self.timers.append((time.monotonic() + SIGTERM_AFTER_S, None))
        self.context.is_shutdown = True
        for process, _ in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def step(self) -> None:
        """React to what has ended, and to timers."""
        ended = [entry for entry in self.processes if entry[0].poll() is not None]
        self.processes = [entry for entry in self.processes if entry not in ended]
        for process, action in ended:
            print(f'{" ".join(action.command[:3])} ended with {process.returncode}', flush=True)
            if action.on_exit is not None:
                event = SimpleNamespace(returncode=process.returncode)
                self.carry_out(action.on_exit(event, self.context) or [])
        due = [entry for entry in self.timers if time.monotonic() > entry[0]]
        self.timers = [entry for entry in self.timers if entry not in due]
        for _, timer in due:
            if timer is None:
                self.stop(signal.SIGTERM)
            else:
                self.carry_out(timer.actions)


def main(argv: list[str]) -> int:
    path, *arguments = argv
    entities = PythonLaunchDescriptionSource(path).entities()
    if arguments == ['--show-args']:
        for entity in entities:
            if isinstance(entity, DeclareLaunchArgument):
                print(f"    '{entity.name}':\n        {entity.description}\n"
                      f"        (default: '{entity.default_value}')")
        return 0

    launch = Launch(LaunchContext(dict(argument.split(':=', 1) for argument in arguments)))
    signal.signal(signal.SIGINT, lambda number, _: launch.stop(number))
    signal.signal(signal.SIGTERM, lambda number, _: launch.stop(number))
    launch.guard(launch.carry_out, entities)
    while launch.processes:
        launch.guard(launch.step)
        time.sleep(0.05)
    return int(launch.failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
