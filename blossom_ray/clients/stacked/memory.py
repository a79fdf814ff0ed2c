"""How many clients a stack takes: on a GPU as many as its memory holds, which the first stack tells."""

from __future__ import annotations

import torch

# Part of the free memory that a stack may take: clients of one chunk differ, and so do batches.
_USED_PART = 0.8


class CudaMemory:
    """A GPU's memory, which other processes may share."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset_peak(self) -> None:
        """Begin to watch."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """The most bytes that tensors of this process have taken since."""
        return torch.cuda.max_memory_allocated(self._device)

    def free_bytes(self) -> int:
        """What no process has, and what this one has."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device)

    def release(self) -> None:
        """Give memory back that is kept for further tensors."""
        torch.cuda.empty_cache()


class StackSize:
    """The most clients of a stack.

    Args:
        first: What to begin with.
        memory: Of the device; None where it is not watched, as on a CPU.

    Attributes:
        limit: The most clients at present.
    """

    def __init__(self, first: int, memory: CudaMemory | None) -> None:
        self.limit, self._memory = first, memory
        self._is_settled = memory is None

    def watch(self) -> None:
        """A stack is about to be computed."""
        if self._memory is not None and not self._is_settled:
            self._memory.reset_peak()

    def learn(self, num_clients: int) -> None:
        """A stack of so many clients has been trained: the first one tells what a client takes."""
        if self._memory is None or self._is_settled:
            return
        bytes_per_client = self._memory.peak_bytes() / num_clients
        self.limit = max(1, int(_USED_PART * self._memory.free_bytes() / max(1.0, bytes_per_client)))
        self._is_settled = True

    def halve(self, num_clients: int) -> None:
        """A stack of so many clients, more than one, did not fit; it never gets larger again than half of that."""
        self.limit, self._is_settled = num_clients // 2, True
        if self._memory is not None:
            self._memory.release()
