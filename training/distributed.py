"""One training run on several processes: this process's place among them.

``torchrun`` starts the processes ("ranks") and sets their environment. Every rank holds the same
weights and computes its share of each step; ``DistributedDataParallel`` exchanges the gradients.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
import os

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=2)  # the other ranks wait this long for rank 0 to validate


@dataclass(frozen=True)
class Ranks:
    """This process, number ``rank`` of ``count``, and where and how it computes."""

    rank: int = 0
    count: int = 1
    device: str = 'cpu'
    mixed_precision: bool = False

    def share(self, count: int) -> range:
        """The numbers below ``count`` that this rank computes; ValueError if a rank gets none."""
        if count < self.count:
            raise ValueError(f'a step has {count} parts for {self.count} ranks; start at most '
                             f'{count} ranks')
        return range(self.rank, count, self.count)

    def autocast(self) -> AbstractContextManager:
        """Compute in bfloat16 where that is safe, if asked for; gradients need no scaling."""
        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.mixed_precision)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all ranks at each backward pass."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False)

    def exchange(self, module: nn.Module, now: bool) -> AbstractContextManager:
        """Forward and backward passes inside exchange the gradients only if ``now``."""
        return nullcontext() if now or self.count == 1 else module.no_sync()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on every rank; gradients pass through it."""
        return tensor if self.count == 1 else all_reduce(tensor)

    def copy_buffers_from_first(self, module: nn.Module) -> None:
        """Give every rank the buffers that the module has on rank 0."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def from_first(self, value: bool) -> bool:
        """Rank 0's value, on every rank; a rank waits here for the others."""
        flag = torch.tensor([float(value and self.rank == 0)], device=self.device)
        return bool(self.sum(flag).item())


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str, mixed_precision: bool = False) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    Without torchrun this process is alone. ``device`` is auto, cpu or cuda; a rank on GPUs takes
    the one of its number on this machine (LOCAL_RANK).
    """
    local_rank = int(os.environ.get('LOCAL_RANK', '0'))
    count = int(os.environ.get('WORLD_SIZE', '1'))
    device = rank_device(device, local_rank)
    if count == 1:
        yield Ranks(device=device, mixed_precision=mixed_precision)
        return
    if device != 'cpu':
        torch.cuda.set_device(device)
    distributed.init_process_group('gloo' if device == 'cpu' else 'nccl', timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), count, device, mixed_precision)
    finally:
        distributed.destroy_process_group()


def rank_device(device: str, local_rank: int) -> str:
    """The torch device of the rank of that number on this machine, such as ``cuda:1``."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == 'cpu' or (device == 'auto' and gpus == 0):
        return 'cpu'
    if gpus == 0:
        raise ValueError('no CUDA device was found; use --device cpu')
    if local_rank >= gpus:
        raise ValueError(f'rank {local_rank} of this machine has no GPU of its own: {gpus} found; '
                         f'start {gpus} processes per machine, or use --device cpu')
    return f'cuda:{local_rank}'
