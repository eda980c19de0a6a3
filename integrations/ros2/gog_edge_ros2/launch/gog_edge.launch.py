"""ros2 launch gog_edge_ros2 gog_edge.launch.py bundle:=birds question:='Which bird?' image:=/camera/image_raw"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PARAMETERS = {
    "bundle": ("", str, "The exported policy: its folder, or its name in the library."),
    "index": ("", str, "A local index to search."),
    "question": ("", str, "Asked about every newest picture; empty: wait for one."),
    "deadline": ("0.0", float, "Seconds from a picture's arrival to its answer; 0: none."),
    "rate": ("0.0", float, "Answers a second at most; 0: as fast as they come."),
}
IMAGE = "Topic of the camera; its compressed pictures are those of the topic's /compressed."


def generate_launch_description() -> LaunchDescription:
    arguments = [DeclareLaunchArgument(name, default_value=v, description=d) for name, (v, _, d) in PARAMETERS.items()]
    arguments.append(DeclareLaunchArgument("image", default_value="image", description=IMAGE))
    values = {n: ParameterValue(LaunchConfiguration(n), value_type=kind) for n, (_, kind, _) in PARAMETERS.items()}
    image = LaunchConfiguration("image")
    node = Node(
        package="gog_edge_ros2",
        executable="node",
        name="gog_edge",
        output="screen",
        parameters=[values],
        remappings=[("image", image), ("image/compressed", [image, "/compressed"])],
    )
    return LaunchDescription([*arguments, node])
