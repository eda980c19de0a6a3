"""The colcon package; `gog-edge` itself is installed with pip."""

from setuptools import setup

NAME = "gog_edge_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/gog_edge.launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="gog-edge",
    maintainer_email="gog-edge@example.org",
    description="A node that asks a gog-edge policy about camera pictures",
    license="Apache-2.0",
    entry_points={"console_scripts": ["node = gog_edge_ros2.node:main"]},
)
