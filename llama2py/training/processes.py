"""One process, or the several that torchrun starts: which of them this is, and what they share."""

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
        Asked for; of several processes on ``cuda`` each takes the device of its local rank.

    Raises
    ------
    TrainingError
        If the device is not to be had.

    Attributes
    ----------
    rank, count : int
        This process's number, and how many there are.
    device : torch.device
        Where this process computes.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1 and device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch's own ways to say no
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"device {device!r} is not to be had ({reason}), expected one that is, such as cpu"
            ) from None
        if self.count > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        # Flags have a group of their own: a gloo worker may still hold the last tensor it was given
        # when the interpreter ends, and then aborts the process. Destroying a group joins its
        # workers, but not those of a group that DistributedDataParallel has ever seen.
        self._flags = dist.new_group(backend="gloo") if self.count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the process that measures, writes and reports."""
        return self.rank == 0

    def share(self, steps: int) -> int:
        """This process's part of the gradient accumulation steps.

        Raises
        ------
        ParameterError
            If they cannot be shared evenly.
        """
        if steps % self.count:
            raise ParameterError(
                f"gradient_accumulation_steps is {steps},"
                f" expected a multiple of the {self.count} processes"
            )
        return steps // self.count

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def without_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay here for now."""
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process: all of them stop, or none."""
        if self._flags is None:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._flags)
        return bool(flags.item())

    def close(self) -> None:
        """Part from the others."""
        if self._flags is not None:
            dist.destroy_process_group(self._flags)
            self._flags = None  # the last reference: its workers end here
            dist.destroy_process_group()
