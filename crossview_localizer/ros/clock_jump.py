"""Jumps of simulated time back: a bag that is looped, or played again."""

from collections.abc import Callable

from rclpy.clock import JumpHandle, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node

# /clock may wobble by less than this without having jumped back.
CLOCK_JUMP_S = 0.1


def call_on_backward_jump(node: Node, callback: Callable[[float], None]) -> JumpHandle:
    """Call ``callback`` with the seconds by which the node's clock has jumped back, each time.

    Keep the handle as long as the node: rclpy crashes where it is collected before.
    """
    threshold = JumpThreshold(
        min_forward=None, min_backward=Duration(seconds=-CLOCK_JUMP_S), on_clock_change=False)
    return node.get_clock().create_jump_callback(
        threshold, post_callback=lambda jump: callback(-jump.delta.nanoseconds * 1e-9))
