"""Tables in device memory that the host updates without waiting for the device.

A table is uploaded through pinned memory, which is allocated once. Two buffers take turns, each with an event that is
recorded after its upload. A buffer is reused only when the upload before last is done, which in a training loop is long
past. Uploads and kernels use the current stream, so that a kernel sees the table of its own step. If steps run on
different streams, the caller must order them, which their parameters require anyway.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["DeviceTable"]


class DeviceTable:
    """A one-dimensional tensor on a device. :meth:`update` uploads the range that has changed.

    Parameters
    ----------
    count
        The length of the table.
    dtype
        The dtype of the table: ``torch.int64`` or ``torch.int32``.
    device
        The device of the table. On the CPU (Triton's interpreter), an upload is a copy.
    """

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.tensor: Tensor = torch.zeros(count, dtype=dtype, device=device)
        self.uploaded = 0
        """The number of bytes uploaded so far."""
        self._buffers = [torch.zeros(count, dtype=dtype, pin_memory=pinned, device="cpu") for _ in range(2)]
        self._consumed = [torch.cuda.Event() for _ in self._buffers] if pinned else []
        self._turn = 0
        self._held = np.zeros(count, self._buffers[0].numpy().dtype)

    def update(self, values: npt.NDArray[np.signedinteger]) -> None:
        """Update the table. Nothing is uploaded if nothing has changed."""
        changed = np.flatnonzero(self._held != values)
        if not len(changed):
            return
        first, stop = int(changed[0]), int(changed[-1]) + 1
        self._held[first:stop] = values[first:stop]
        turn = self._turn = 1 - self._turn
        buffer = self._buffers[turn][first:stop]
        if self._consumed:
            self._consumed[turn].synchronize()
        buffer.numpy()[:] = values[first:stop]
        self.tensor[first:stop].copy_(buffer, non_blocking=True)
        if self._consumed:
            self._consumed[turn].record()
        self.uploaded += buffer.nbytes
