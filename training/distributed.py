"""One training over several processes: what each has to know of the others.

``torchrun`` starts the processes and sets their environment.  Every rank has the same weights and
takes its share of each step's images; gradients are summed before the optimizer's step, so that
all weights stay the same.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
import os

import torch
from torch import distributed

TIMEOUT = timedelta(hours=2)  # the others wait while rank 0 validates


@dataclass(frozen=True)
class Ranks:
    """This process among ``count``, and where and how it computes."""

    rank: int = 0
    count: int = 1
    device: str = 'cpu'
    mixed_precision: bool = False

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where it is safe; it needs no scaling of gradients."""
        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.mixed_precision)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Every rank's gradients become their sum; one exchange for all of them."""
        if self.count == 1:
            return
        flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        self.sum_(flat)
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = gradient.view_as(p)

    def tell(self, value: bool) -> bool:
        """Rank 0's value, on every rank."""
        flag = torch.tensor([float(value and self.rank == 0)], device=self.device)
        return bool(self.sum_(flag).item())


ALONE = Ranks()


def join_ranks(device: str, mixed_precision: bool) -> Ranks:
    """This process's place among those that ``torchrun`` started; alone without it.

    ``device`` is auto, cpu or cuda; several GPU ranks take one GPU each.
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('no CUDA device was found; use --device cpu')
    count = int(os.environ.get('WORLD_SIZE', '1'))
    if count == 1:
        return Ranks(device=device, mixed_precision=mixed_precision)
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
    distributed.init_process_group('nccl' if device == 'cuda' else 'gloo', timeout=TIMEOUT)
    return Ranks(distributed.get_rank(), count, device, mixed_precision)


def leave_ranks() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
