from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

package_name = 'crossview_localizer'
share = f'share/{package_name}'

setup(
    name=package_name,
    version='0.1.0',
    description=(
        'Cross-view localization of a vehicle: camera images are matched against preloaded '
        'satellite embeddings around a GNSS and odometry prior.'
    ),
    license='Apache-2.0',
    author='The crossview_localizer maintainers',
    author_email='maintainers@crossview-localizer.example.org',
    maintainer='The crossview_localizer maintainers',
    maintainer_email='maintainers@crossview-localizer.example.org',
    keywords=['ROS'],
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={f'{package_name}.evaluation': ['*.jinja']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (share, ['package.xml']),
        (f'{share}/launch', glob('launch/*.launch.py')),
        (f'{share}/config', glob('config/*.*')),
        (f'{share}/config/weights', glob('config/weights/*.*')),
        # For the command adapt, which alone finds it there.
        *((f'{share}/{folder}', glob(f'{folder}/*.py')) for folder in sorted(
            {path.parent.as_posix() for path in Path('training').rglob('*.py')})),
    ],
    python_requires='>=3.11',
    install_requires=['setuptools'],
    extras_require={'onnx': ['onnx', 'onnxruntime'], 'test': ['pytest']},
    zip_safe=True,
    entry_points={
        'console_scripts': [
            'localizer_node = crossview_localizer.node:main',
            'robotcar_to_bag = crossview_localizer.robotcar_to_bag:main',
            'kitti_to_bag = crossview_localizer.kitti_to_bag:main',
            'build_map = crossview_localizer.build_map:main',
            'map = crossview_localizer.map:main',
            'export = crossview_localizer.export:main',
            'play_bag = crossview_localizer.play_bag:main',
            'record_bag = crossview_localizer.record_bag:main',
            'report = crossview_localizer.report:main',
            'overlay = crossview_localizer.overlay:main',
            'viewer_bag = crossview_localizer.viewer_bag:main',
            'scene = crossview_localizer.scene:main',
            'doctor = crossview_localizer.doctor:main',
            'wheel_odometry = crossview_localizer.wheel_odometry:main',
            'adapt = crossview_localizer.adapt:main',
            'calibrate_camera = crossview_localizer.calibrate_camera:main',
        ],
    },
)
