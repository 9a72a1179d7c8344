"""The processes of a run: one, or several that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ParameterError, TrainingError


class Processes:
    """The processes of a run, as torchrun describes them in the environment.

    Parameters
    ----------
    device : str
        A PyTorch device. With several processes, ``cuda`` means the device of the local rank.

    Attributes
    ----------
    rank, count : int
        This process's number, and the number of processes.
    device : torch.device
        The device of this process.

    Raises
    ------
    TrainingError
        If the device is not available.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1 and device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        try:
            self.device = torch.device(device)
            torch.zeros(1, device=self.device).item()
        except (
            RuntimeError,
            AssertionError,
            NotImplementedError,
        ) as error:  # torch's ways to say no
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"device {device!r} is not available ({reason})") from None
        if self.count > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        # Flags have a group of their own: a gloo worker may still hold its last tensor when the
        # interpreter ends, which aborts the process. Destroying a group joins its workers, but not
        # those of a group that DistributedDataParallel has ever used.
        self._flags = dist.new_group(backend="gloo") if self.count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the process that measures, writes and reports."""
        return self.rank == 0

    def share(self, steps: int) -> int:
        """Return this process's share of the gradient accumulation steps.

        Raises
        ------
        ParameterError
            If the steps cannot be shared evenly.
        """
        if steps % self.count:
            raise ParameterError(
                f"gradient_accumulation_steps is {steps},"
                f" expected a multiple of the {self.count} processes"
            )
        return steps // self.count

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def without_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which gradients are not averaged yet."""
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process; wait for all of them."""
        if self._flags is None:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._flags)
        return bool(flags.item())

    def close(self) -> None:
        """Leave the groups of processes."""
        if self._flags is not None:
            dist.destroy_process_group(self._flags)
            self._flags = None  # the last reference: its workers end here
            dist.destroy_process_group()
