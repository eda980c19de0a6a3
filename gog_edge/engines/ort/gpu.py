"""Why ONNX Runtime does not start on an NVIDIA GPU, found without starting it, and the one command that mends it.

onnxruntime and onnxruntime-gpu are two distributions of one folder: pip installs both, and what was written last is
there. gog-edge needs one of them and the extra `gpu` asks for the other, so either may have won (ADR 0019-one-folder).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import platform
import struct
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # distributions of the folder onnxruntime/
LAST_CUDA_12 = (1, 26)  # of onnxruntime-gpu on PyPI: 1.27 and later are built for CUDA 13
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_FILES = {
    "CUDAExecutionProvider": "cuda",
    TENSORRT_PROVIDER: "tensorrt",
    "NvTensorRTRTXExecutionProvider": "nv_tensorrt_rtx",
}
_JETSON = Path("/etc/nv_tegra_release")
_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True)
class Fault:
    """What keeps a provider from starting, and the command (or the sentence) that mends it."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


def installed() -> dict[str, str]:
    """Versions of the distributions that share the folder, by name."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def absent(provider: str) -> Fault:
    """Why this onnxruntime does not have `provider` at all."""
    import onnxruntime

    found = installed()
    gpu = found.get("onnxruntime-gpu")
    if gpu is not None and not onnxruntime.cuda_version:
        return Fault(
            f"onnxruntime {found.get('onnxruntime', onnxruntime.__version__)} lies over the files of "
            f"onnxruntime-gpu {gpu}",
            f"pip install --force-reinstall --no-deps onnxruntime-gpu=={gpu}",
        )
    what = f"this onnxruntime {onnxruntime.__version__} has no {provider}"
    if gpu is not None or onnxruntime.cuda_version:
        return Fault(what, "its wheel was built without it; use the engine cuda")
    return Fault(what, how_to_install())


def how_to_install() -> str:
    """The command that brings onnxruntime-gpu to this machine."""
    if platform.machine() == "aarch64" and sys.version_info < (3, 11):
        return (
            "onnxruntime-gpu has no wheel for Python 3.10 on Arm at PyPI; NVIDIA's index has one for JetPack 6: "
            "pip install --force-reinstall --no-deps onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"
        )
    return (
        "pip install 'gog-edge[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
        " (twice, because both onnxruntime packages write one folder and the last one counts)"
    )


def preload() -> None:
    """Load CUDA's and cuDNN's libraries from the packages of pip, where they are; a provider finds them then."""
    import onnxruntime

    if onnxruntime.cuda_version and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls(directory="")


def faults(provider: str) -> list[Fault]:
    """What keeps `provider`, which this onnxruntime has, from starting; on Linux only, where it can be read off."""
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{_FILES[provider]}.so"
    if not library.is_file():
        return []
    preload()
    found = []
    driver = _driver_version()
    if driver is None:
        found.append(Fault("libcuda.so.1 is missing, so there is no NVIDIA driver", "install NVIDIA's driver"))
    elif (wrong := _wrong_cuda(driver, onnxruntime.cuda_version)) is not None:
        found.append(wrong)
    missing = [name for name in needed(library) if name != "libcuda.so.1" and not _loads(name)]
    tensorrt = [name for name in missing if name.startswith(("libnvinfer", "libnvonnxparser"))]
    for names, mend in ((tensorrt, "install TensorRT 10"), ([n for n in missing if n not in tensorrt], _LIBRARIES)):
        if names:
            mend = "sudo apt-get install nvidia-jetpack" if _JETSON.exists() else mend
            found.append(Fault(f"{library.name} needs {', '.join(names)}", mend))
    return found


def _wrong_cuda(driver: int, built: str) -> Fault | None:
    """The driver's CUDA (13010 is 13.1) against that of the wheel ("13.0"). A driver runs everything of its major
    version and of older ones."""
    if not built or driver // 1000 >= int(built.split(".")[0]):
        return None
    older = f"pip install 'onnxruntime-gpu[cuda,cudnn]<{LAST_CUDA_12[0]}.{LAST_CUDA_12[1] + 1}'"
    return Fault(
        f"the NVIDIA driver knows CUDA {driver // 1000}.{driver % 1000 // 10}, onnxruntime-gpu is built for {built}",
        "update the driver" + (f", or {older}" if driver // 1000 == 12 else ""),
    )


def _driver_version() -> int | None:
    """CUDA's version that the driver knows, 13010 for 13.1; None: there is no driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def needed(library: Path) -> list[str]:
    """NVIDIA's libraries that a 64-bit ELF file asks the loader for (DT_NEEDED), in its order; none where it is no
    such file. Formats: System V ABI, chapters 4 and 5."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            return []
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<II6Q", data, table + i * size) for i in range(count)]
        loaded = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in headers if kind == 1]
        names, strings = [], 0
        for kind, _, offset, _, _, length, _, _ in headers:
            if kind != 2:
                continue
            for tag, value in struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16]):
                if tag == 1:
                    names.append(value)
                elif tag == 5:
                    strings = next(o + value - a for a, o, n in loaded if a <= value < a + n)
        found = [data[strings + n : data.find(b"\0", strings + n)].decode("ascii", "replace") for n in names]
    return [name for name in found if name.startswith(("libcu", "libnv"))]
