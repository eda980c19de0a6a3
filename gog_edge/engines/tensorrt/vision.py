"""The vision tower on TensorRT, on a stream of its own: crop, tower and features follow each other on the device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gog_edge.crop import Grid, crop_patches
from gog_edge.crop.gpu import DeviceArray
from gog_edge.deadline import UNLIMITED, Budget
from gog_edge.engines.tensorrt.cuda import CudaGpu
from gog_edge.engines.tensorrt.memory import DeviceFeatures, Lane, Packed, check_tensors
from gog_edge.engines.tensorrt.plan import TrtPlan
from gog_edge.errors import EngineError
from gog_edge.image.frame import Frame
from gog_edge.manifest import Manifest, Preprocessing
from gog_edge.types import Region

log = logging.getLogger("gog_edge.tensorrt")


class TrtVision:
    """`VisionRunner` over one plan. `run` returns when the work is queued: the features are `DeviceFeatures`."""

    def __init__(self, gpu: CudaGpu, plan: TrtPlan, manifest: Manifest, *, device_crop: bool) -> None:
        """Make the context; with `device_crop` also the crop kernel, on the same stream.

        Raises:
            EngineError: the plan does not fit the manifest, or there is no memory.
        """
        spec = manifest.graphs["vision"]
        check_tensors(plan.tensors, (*spec.inputs, *spec.outputs), "vision")
        self._gpu, self._plan, self._manifest = gpu, plan, manifest
        self._dtypes = {t.name: t.dtype for t in spec.inputs}
        self.limits = {t.name: plan.limits(t.name, 0) for t in spec.inputs}
        self._cropper: Any = None
        self.crop_note = "on the host, as asked"
        stream = self._start_cropper() if device_crop else None
        self._lane = Lane(gpu, stream if stream is not None else gpu.stream())
        self._owned: list[Any] = []
        try:
            nbytes = max(plan.scratch(0), 1)
            scratch = gpu.allocate(nbytes)
            self._owned.append(scratch)
            self._context = plan.context(0, self._lane.stream, scratch.address, nbytes, few_shapes=False)
            self._owned.append(self._context)
        except BaseException:
            self.close()
            raise

    @property
    def max_patches(self) -> int:
        """Patches of the largest image that the engine's profile covers."""
        return int(self.limits["patches"][1][0])

    def crop_patches(
        self, frame: Frame, region: Region | None, grid: Grid, preprocessing: Preprocessing
    ) -> DeviceArray | NDArray[np.float32]:
        """Patches for `run`: on the device where the crop kernel is available there, else on the host."""
        if self._cropper is None:
            return crop_patches(frame, region, grid, preprocessing)
        with self._lane.use():
            patches: DeviceArray = self._cropper.crop_patches(frame, region, grid, preprocessing)
            return patches

    def run(self, inputs: Mapping[str, Any], budget: Budget = UNLIMITED) -> DeviceFeatures:
        """See `VisionRunner.run`; `patches` may be a `DeviceArray` of `crop_patches` (it is used up).

        The budget is looked at before the run; a run on the device is not interrupted.
        """
        odd = sorted(inputs.keys() ^ self._dtypes.keys())
        if odd:
            raise EngineError(f"the vision engine's inputs do not fit this version ({', '.join(odd)}); export again")
        budget.check()
        self._check_sizes(inputs)
        vision = self._manifest.vision
        tokens = int(inputs["patches"].shape[0]) // self._manifest.preprocessing.merge_size**2
        with self._lane.use():
            gpu, stream, context = self._gpu, self._lane.stream, self._context
            features = DeviceFeatures(self._lane, tokens, vision.out_hidden, vision.deepstack)
            packed = self._upload(inputs)
            try:
                context.bind("features", features.address)
                if vision.deepstack:
                    context.bind("deepstack", features.deepstack_address)
                context.enqueue(stream)
                features.finished(gpu.event(stream))
            finally:
                for memory in packed:
                    memory.close()
            return features

    def close(self) -> None:
        """Wait for the tower and free everything but the features. Idempotent."""
        if self._cropper is not None:
            self._cropper.close()
        self._lane.close()
        while self._owned:
            self._owned.pop().close()

    def _check_sizes(self, inputs: Mapping[str, Any]) -> None:
        """Raises EngineError for an image that the engine's profile does not cover."""
        for name, value in inputs.items():
            low, high = self.limits[name]
            if all(a <= b <= c for a, b, c in zip(low, value.shape, high)):
                continue
            patches, factor = int(inputs["patches"].shape[0]), self._manifest.preprocessing.patch_size**2
            least, most = self.limits["patches"][0][0], self.limits["patches"][1][0]
            raise EngineError(
                f"an image of {patches} patches ({name} is {list(value.shape)}) is outside of what the vision engine "
                f"was built for: {least} to {most} patches ({least * factor} to {most * factor} pixels); "
                "build the engine again; --image-patches says up to which size"
            )

    def _upload(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Shapes and addresses of the inputs; what is to be freed once the run is on the stream."""
        gpu, stream, context = self._gpu, self._lane.stream, self._context
        ready: dict[str, NDArray[Any]] = {}
        used: list[Any] = []
        for name, value in inputs.items():
            context.shape(name, tuple(int(d) for d in value.shape))
            if isinstance(value, DeviceArray):
                context.bind(name, value.memory.address)
                used.append(value)
            else:
                ready[name] = np.ascontiguousarray(value, self._dtypes[name])
        offsets, size = Packed.places({n: (a.shape, self._dtypes[n]) for n, a in ready.items()})
        memory = gpu.allocate(size, stream)
        used.append(memory)
        for name, array in ready.items():
            gpu.upload(memory.address + offsets[name], array, stream)
            context.bind(name, memory.address + offsets[name])
        return used

    def _start_cropper(self) -> Any:
        """The crop kernel on the device, and its stream; None where unavailable, with the reason in `crop_note`."""
        from gog_edge.crop.cuda import CudaCropper

        found = self._gpu.crop_driver()
        if found is None:
            self.crop_note = "on the host: this device has no crop driver"
            return None
        driver, stream = found
        try:
            self._cropper = CudaCropper(driver)
        except EngineError as e:
            log.warning("crops are cut on the host: %s", e)
            self.crop_note = f"on the host: {e}"
            return None
        self.crop_note = "on the device"
        return stream
