"""ROS parameter files, read by the rules of ROS 2 (rcl_yaml_param_parser)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
import re

from crossview_localizer.config import (
    configs_from_parameters,
    LocalizerConfig,
    NodeConfig,
    require_sim_time,
)

LOCALIZER = 'crossview_localizer'
# Parameters that rclpy declares and reads itself, and groups of them.
ROS_PARAMETERS = ('use_sim_time', 'start_type_description_service', 'qos_overrides')
KINDS = {bool: 'bool', int: 'integer', float: 'double', str: 'string'}


@dataclass(frozen=True)
class Section:
    """The parameters below one ``ros__parameters``, by dotted names.

    ``key`` is the name of a node, such as /car/crossview_localizer or, with wildcards, /**.
    """

    key: str
    values: dict[str, object]

    def applies_to(self, node: str) -> bool:
        """Whether the node of this full name takes them; * is one name, ** any number."""
        parts = self.key.strip('/').split('/')
        pattern = ''.join(
            {'*': r'/\w+', '**': r'(/\w+)*'}.get(part, '/' + re.escape(part)) for part in parts)
        return re.fullmatch(pattern, node) is not None

    def may_apply_to(self, name: str) -> bool:
        """Whether a node of this name takes them in some namespace."""
        return self.key.rpartition('/')[2] in (name, '*', '**')


def read_sections(path: str | Path) -> list[Section]:
    """The sections of a file in its order; OSError, or ValueError with what ROS refuses."""
    import yaml

    try:
        text = Path(path).read_text(encoding='utf-8')
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError('ROS does not take aliases (*name)')
        sections = list(_sections(_loader()(text).get_single_data(), ''))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(
            f'{path} is not a parameter file: {" ".join(str(error).split())}') from error
    if not sections:
        raise ValueError(f'{path} is not a parameter file: it has no ros__parameters; expected '
                         '/**: and below it ros__parameters:')
    return sections


def read_parameters(
    path: str | Path, node: str | None = None,
) -> tuple[NodeConfig, LocalizerConfig]:
    """The two configs of a file, as the localizer of this full name takes them.

    Without ``node`` it is that of any namespace.  Raises OSError, or ValueError with what was
    found and expected.
    """
    sections = read_sections(path)
    used = [section for section in sections if (
        section.may_apply_to(LOCALIZER) if node is None else section.applies_to(node))]
    if not used:
        raise ValueError(
            f'{path} has parameters of {", ".join(section.key for section in sections)} and none '
            f'of {node or LOCALIZER}; expected /** or {node or LOCALIZER}')
    values = {}
    for section in sorted(used, key=lambda section: '*' not in section.key):
        values.update(section.values)
    require_sim_time(values.get('use_sim_time', False))
    return configs_from_parameters(
        {name: value for name, value in values.items() if not belongs_to_ros(name)})


def belongs_to_ros(name: str) -> bool:
    """Whether every node of rclpy has a parameter of this name."""
    return name.split('.')[0] in ROS_PARAMETERS


def _sections(content, prefix: str) -> Iterator[Section]:
    if not isinstance(content, dict):
        raise ValueError(f'{prefix or "it"} is {content!r}; expected names of nodes, and below '
                         'them ros__parameters:')
    for key, inner in content.items():
        if key == 'ros__parameters':
            if not prefix:
                raise ValueError('ros__parameters stands below no node; expected /**: above it')
            yield Section(prefix, dict(_flat_items(inner or {}, '')))
        else:
            yield from _sections(inner, f'{prefix}/{str(key).strip("/")}')


def _flat_items(content, prefix: str) -> Iterator[tuple[str, object]]:
    if not isinstance(content, dict):
        raise ValueError(f'ros__parameters is {content!r}; expected names and values')
    for key, value in content.items():
        name = f'{prefix}{key}'
        if isinstance(value, dict):
            yield from _flat_items(value, f'{name}.')
            continue
        if value == []:
            raise ValueError(f'{name} is an empty list, which ROS refuses; leave it out')
        items = value if isinstance(value, list) else [value]
        kinds = {KINDS.get(type(item), 'no value' if item is None else 'list') for item in items}
        if kinds & {'no value', 'list'}:
            raise ValueError(f'{name} is {value!r}; expected a value or a list of values')
        if len(kinds) > 1:
            raise ValueError(
                f'{name} mixes {" and ".join(sorted(kinds))} ({value}), for which ROS refuses the '
                'whole file; write each number with a point')
        yield name, value


def _loader():
    """A safe loader with the scalars of ROS, where 1e-3 is a number and y is true."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}

    for tag, pattern in (
            ('bool', r'y|yes|n|no|true|false|on|off|Y|Yes|YES|N|No|NO|True|TRUE|False|FALSE|On|ON'
                     r'|Off|OFF'),
            ('int', r'[-+]?(0[xX][0-9a-fA-F]+|[0-9]+)'),
            ('float', r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?'
                      r'|[-+]?\.?(inf|Inf|INF|nan|NaN|NAN)'),
            ('null', r'|~|null|Null|NULL')):
        Loader.add_implicit_resolver(
            f'tag:yaml.org,2002:{tag}', re.compile(f'^(?:{pattern})$'), None)
    Loader.add_constructor(
        'tag:yaml.org,2002:bool', lambda loader, node: node.value.lower() in (
            'y', 'yes', 'true', 'on'))
    Loader.add_constructor('tag:yaml.org,2002:int', lambda loader, node: _whole_number(node.value))
    Loader.add_constructor(
        'tag:yaml.org,2002:float', lambda loader, node: float(
            node.value.lower().replace('.inf', 'inf').replace('.nan', 'nan')))
    return Loader


def _whole_number(text: str) -> int | float:
    """A number as C reads it: 0x is hexadecimal, a leading 0 octal; 08 is a double."""
    digits = text.lstrip('+-')
    octal = len(digits) > 1 and digits.isdigit() and digits.startswith('0')
    if octal and not set(digits) <= set('01234567'):
        return float(text)
    value = int(digits, 8 if octal else 0)
    return -value if text.startswith('-') else value
