"""A node's parameters: the fields of NodeConfig and LocalizerConfig, declared and checked."""

import math

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node

from crossview_localizer.config import (
    configs_from_parameters,
    LIST_LENGTHS,
    LocalizerConfig,
    NodeConfig,
    require_sim_time,
    tunables,
)
from crossview_localizer.parameter_file import belongs_to_ros


def parameter_values(node: Node) -> dict[str, object]:
    """All parameters of a node that have a value, without those of rclpy.

    Raises ValueError where use_sim_time is no truth value.
    """
    require_sim_time(node.get_parameter('use_sim_time').value)
    return {
        name: parameter.value for name, parameter in node.get_parameters_by_prefix('').items()
        if not belongs_to_ros(name) and parameter.value is not None}


class NodeParameters:
    """Declares every parameter with its description and range, and reads them.

    The node must have been made with ``automatically_declare_parameters_from_overrides``: only
    then is a misspelled name noticed.  Raises ValueError for a name that is unknown or a value
    that is not valid.  While ``locked``, changes are refused.
    """

    def __init__(self, node: Node):
        self.locked = False
        self._node = node
        given = parameter_values(node)
        configs = configs_from_parameters(given)
        for name in given:
            node.undeclare_parameter(name)
        for config in configs:
            for name, (value, meta) in tunables(config).items():
                if isinstance(value, tuple):
                    # ROS has no empty lists, and without any value nobody could dump it.
                    value = [float(item) for item in value] or [math.nan] * LIST_LENGTHS[name]
                node.declare_parameter(name, value, _descriptor(value, meta), ignore_override=True)
        node.add_on_set_parameters_callback(self._refuse_changes_while_locked)

    def configs(self) -> tuple[NodeConfig, LocalizerConfig]:
        """The present values; raises ValueError if one is not valid."""
        return configs_from_parameters(parameter_values(self._node))

    def _refuse_changes_while_locked(self, parameters) -> SetParametersResult:
        changed = [p.name for p in parameters if not belongs_to_ros(p.name)]
        if changed and self.locked:
            return SetParametersResult(
                successful=False,
                reason=f'{changed[0]} is read when the node is configured; deactivate and clean '
                'up the node first')
        return SetParametersResult(successful=True)


def _descriptor(value, meta: dict) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=meta['description'])
    if meta['choices']:
        descriptor.additional_constraints = 'one of ' + ', '.join(meta['choices'])
    if meta['low'] is not None and isinstance(value, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(meta['low']), to_value=float(meta['high']))]
    elif meta['low'] is not None:
        descriptor.integer_range = [IntegerRange(
            from_value=int(meta['low']), to_value=int(meta['high']), step=1)]
    return descriptor
