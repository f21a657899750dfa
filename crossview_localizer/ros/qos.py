"""QoS profiles by name."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def qos_profile(reliability: str, depth: int) -> QoSProfile:
    """``reliability`` is best_effort or reliable; raises ValueError for anything else."""
    policies = {
        'best_effort': ReliabilityPolicy.BEST_EFFORT, 'reliable': ReliabilityPolicy.RELIABLE}
    if reliability not in policies:
        raise ValueError(f'reliability {reliability!r}; expected {" or ".join(policies)}')
    return QoSProfile(depth=depth, reliability=policies[reliability])


def latched_profile(depth: int) -> QoSProfile:
    """Reliable and transient local: a late subscriber still gets the last ``depth`` messages."""
    return QoSProfile(
        depth=depth, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL)


def overridable() -> QoSOverridingOptions:
    """Let the parameters ``qos_overrides.TOPIC...`` set history, depth and reliability."""
    return QoSOverridingOptions.with_default_policies()
