"""Gives each run that starts nodes its own ROS domain, on this machine alone."""

import os
import random
import socket

from benchmarks import REPOSITORY

PROFILE = REPOSITORY / 'config/fastdds_loopback.xml'
MARK = 'crossview_localizer_domain'
_held: list[socket.socket] = []


def lone_domain() -> tuple[int, socket.socket]:
    """Choose a ROS domain that no other run has; it is held until the socket is closed.

    Two runs in one domain receive each other's sensors. The name of the socket is no file: it is
    visible within the network namespace, as DDS on the loopback is. Raises OSError if no domain is
    left.
    """
    for domain in random.SystemRandom().sample(range(1, 102), 101):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f'\0{MARK}_{domain}')
        except OSError:
            mark.close()
            continue
        return domain, mark
    raise OSError('all ROS domains from 1 to 101 are taken by other runs; wait for one to end')


def environment(domain: int) -> dict[str, str]:
    """Environment variables that keep a run in this domain and on this machine."""
    # Distributions up to Jazzy know only the old name; later ones warn about it.
    names = ['FASTDDS_DEFAULT_PROFILES_FILE']
    if 'FASTRTPS_DEFAULT_PROFILES_FILE' in os.environ or (
            os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')):
        names.append('FASTRTPS_DEFAULT_PROFILES_FILE')
    return {
        'ROS_DOMAIN_ID': str(domain), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        **dict.fromkeys(names, str(PROFILE))}


def keep_to_this_machine() -> None:
    """Give this process and those that it starts a domain of their own until it ends."""
    domain, mark = lone_domain()
    _held.append(mark)
    os.environ.update(environment(domain))
