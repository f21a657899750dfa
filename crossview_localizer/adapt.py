"""Adapt the dense matcher to recorded drives, without precise truth.

``training/adapt.py`` does the work.  The folder ``training`` does not belong to this package: in
the repository it is beside the package, in an installation beside the weights.
"""

from importlib import import_module
from pathlib import Path
import sys

from ament_index_python.packages import get_package_share_directory

PACKAGE = 'crossview_localizer'


def main(arguments=None) -> int:
    beside = Path(__file__).resolve().parent.parent
    folder = beside if (beside / 'training').is_dir() else get_package_share_directory(PACKAGE)
    sys.path.append(str(folder))
    return import_module('training.adapt').main(arguments)


if __name__ == '__main__':
    sys.exit(main())
