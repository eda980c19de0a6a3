"""The ROS 2 node of gog-edge."""
