"""What the middleware says about a message that was received."""

import time


def publication(info: dict) -> tuple[bytes | None, int | None]:
    """The publisher of a message and the message's number; None if DDS does not say."""
    publisher = info.get('publisher_gid')
    return publisher and publisher['data'], info.get('publication_sequence_number')


def arrived_s(info: dict) -> float:
    """When this machine received a message, s of the system's clock; not every DDS says it."""
    return info.get('received_timestamp', 0) * 1e-9 or time.time()
