"""Several processes that train one model: where they meet, what they agree on, and the sum of their gradients.

Each computes an even share of every global batch. Their gradients are added up in buckets, as soon as the last backward pass has
filled one, so that the exchange overlaps with the rest of the pass; after that all take the same optimizer step. This is what
torch's DistributedDataParallel does, without a wrapper: the loop, its phases and its checkpoints stay what they are for one process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ablation.errors import DivergedError, Interrupted, LostProcessError

BUCKET_BYTES = 2**25
"""Gradients exchanged at a time: large enough for the network's full speed, small enough to begin early."""
PATIENCE = timedelta(minutes=30)
"""How long a process may let the others wait, as it does while it writes a checkpoint; a dead one is noticed at once."""
MEETING_PATIENCE = timedelta(minutes=5)
"""How long the lead is waited for, from the start of a job on all its nodes."""
POLL_SECONDS = 0.2

Value = TypeVar("Value")


@contextlib.contextmanager
def _together(what: str) -> Iterator[None]:
    """Turn the failure of an exchange into one that says what it means: torch only knows of sockets."""
    try:
        yield
    except RuntimeError as error:  # torch's network errors are RuntimeErrors
        raise LostProcessError(f"another process of this training ended or cannot be reached ({what}: {error})") from None


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them; on its own a process is a group of one, and nothing is exchanged."""

    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def lead(self) -> bool:
        """Say whether this process writes checkpoints, curves and results."""
        return self.rank == 0

    def share(self, total: int) -> tuple[int, int]:
        """Return the first and the number of this process's images of a global batch, which the group divides evenly."""
        assert total % self.size == 0, "checked by launch.together before anything starts"
        count = total // self.size
        return self.rank * count, count

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process raised it; all get the same answer at the same step."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)  # on the CPU, which need not wait for its GPU
        with _together("agreeing on what to do"):
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised)

    def total(self, scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of scalars over the processes."""
        if self.size == 1 or not scalars:
            return dict(scalars)
        summed = torch.stack(list(scalars.values()))
        with _together("adding up losses"):
            dist.all_reduce(summed)
        return dict(zip(scalars, summed, strict=True))

    def from_lead(self, number: int) -> int:
        """Return the lead's number."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.int64)
        with _together("hearing from the lead"):
            dist.broadcast(shared, 0)
        return int(shared)

    def copy_from_lead(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the lead's: processors of different kinds may draw slightly different first weights."""
        if self.size > 1:
            with _together("copying weights"), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def lead_first(self, name: str, make: Callable[[], Value]) -> Value:
        """Make something in the lead, and in the others once the lead has: what it leaves in a cache is made once.

        The others ask the meeting's store, which has no time limit, as decoding a large data set may take hours.
        """
        if self.size == 1:
            return make()
        with _together(f"waiting for the lead's {name}"):
            while not self.lead and not self.store.check([name]):
                time.sleep(POLL_SECONDS)
        made = make()
        if self.lead:
            self.store.set(name, "made")
        return made

    def mean_over(self, neighbours: int) -> Callable[[Tensor], Tensor]:
        """Return a function that averages a tensor over runs of this many consecutive processes; all processes must ask for it."""
        if neighbours == 1:
            return lambda tensor: tensor
        with _together("forming groups"):
            runs = [range(first, first + neighbours) for first in range(0, self.size - neighbours + 1, neighbours)]
            groups = {run: dist.new_group(list(run)) for run in runs}
        mine = next((group for run, group in groups.items() if self.rank in run), None)

        def mean(tensor: Tensor) -> Tensor:
            if mine is None:  # the processes do not fill the last run
                return tensor
            summed = tensor.clone()
            with _together("averaging"):
                dist.all_reduce(summed, group=mine)
            return summed / neighbours

        return mean

    def part(self) -> None:
        """Take the group apart, in all processes at the same point, when nothing is exchanged any more."""
        if self.size > 1 and dist.is_initialized():
            self.agree(False)  # nobody leaves while another may still ask the lead
            dist.destroy_process_group()


ALONE = Processes()


class GradientSum:
    """Adds up the processes' gradients of some parameters; for a process on its own it does nothing."""

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Processes, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.collecting = False
        self.buckets = _buckets(parameters, bucket_bytes) if processes.size > 1 else []
        self.place = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self.missing: list[int] = []  # by bucket: gradients that the last backward pass has not delivered yet
        self.sent: list[tuple[list[Tensor], Tensor, Any]] = []  # in the order of the buckets, which all processes share
        for parameter in self.place:
            parameter.register_post_accumulate_grad_hook(self._delivered)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Differentiate a loss; the last of a step's backward passes sends each bucket as it fills."""
        self.collecting = last
        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []
        loss.backward()
        self.collecting = False

    def finish(self) -> None:
        """Send what is left, wait, and put the sums in the gradients' place."""
        while len(self.sent) < len(self.buckets):
            self._send()
        for gradients, flat, exchange in self.sent:
            if exchange is not None:
                with _together("adding up gradients"):
                    exchange.wait()
                parts = flat.split([gradient.numel() for gradient in gradients])
                torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])
        self.sent = []

    def _delivered(self, parameter: Tensor) -> None:
        """Count a gradient that is complete, and send buckets, in order, for as long as the next one is full."""
        if not self.collecting:
            return
        self.missing[self.place[parameter]] -= 1  # type: ignore[index]
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self._send()

    def _send(self) -> None:
        """Begin to add up the next bucket; parameters that the loss does not reach have no gradient in any process."""
        gradients = [parameter.grad for parameter in self.buckets[len(self.sent)] if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) if gradients else torch.empty(0)
        with _together("adding up gradients"):
            exchange = dist.all_reduce(flat, async_op=True) if gradients else None
        self.sent.append((gradients, flat, exchange))


def _buckets(parameters: Iterable[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Cut parameters into buckets of one type, last ones first: that is about the order in which gradients come."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        cost = parameter.numel() * parameter.element_size()
        if not buckets or room < cost or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            room = size
        buckets[-1].append(parameter)
        room -= cost
    return buckets


class Meeting:
    """Where the processes of a job find one another: a small server in the lead, which the others ask what to do."""

    def __init__(self, rank: int, size: int, local_rank: int, host: str, port: int) -> None:
        """port: 0 lets the system choose one that is free; `port` then tells which. Raises LostProcessError where nobody answers."""
        self.rank, self.size, self.local_rank = rank, size, local_rank
        try:
            self.store = TCPStore(host, port, None, is_master=rank == 0, timeout=MEETING_PATIENCE, wait_for_workers=False)
        except RuntimeError as error:
            what = f"port {port} of {host} cannot be used" if rank == 0 else f"nobody answers at port {port} of {host}"
            raise LostProcessError(f"{what} for the processes of this job to meet ({error})", "`ablate retry` uses another port.") from None
        self.port = self.store.port
        self.begun = False
        if rank:
            self.store.add("present", 1)

    def called(self, should_stop: Callable[[], bool]) -> bool:
        """Wait, in a process that does not lead, for the lead to begin; returns False where it ends without having begun."""
        while not should_stop():
            try:
                if self.store.check(["begin"]):
                    return True
                if self.store.check(["end"]):
                    self.store.add("gone", 1)
                    return False
            except RuntimeError:  # the lead is gone, and its server with it
                return False
            time.sleep(POLL_SECONDS)
        return False

    @contextlib.contextmanager
    def begin(self) -> Iterator[Processes]:
        """Form the group and yield it; every process then computes on a GPU of its own where there are GPUs."""
        self.begun = True
        gpus = torch.cuda.device_count()
        if self.rank == 0:
            self.store.set("begin", "")
        if gpus:
            torch.cuda.set_device(self.local_rank % gpus)  # among those that the launcher left visible
        with _together("meeting"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        processes = Processes(self.rank, self.size, self.store)
        try:
            yield processes
        except (Interrupted, DivergedError):  # in all processes at the same step; after any other error the rest may never come here
            dist.destroy_process_group()
            raise
        processes.part()

    def end(self, seconds: float = 60.0) -> None:
        """Send the others home where the lead found nothing to begin; gives those that are late some time to come."""
        with contextlib.suppress(RuntimeError):
            for key in ("present", "gone"):
                deadline = time.monotonic() + seconds
                while self.store.add(key, 0) < self.size - 1 and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                self.store.set("end", "")


def leave(code: int) -> None:
    """End this process at once: after a lost exchange, taking a group of GPUs apart can wait for ever."""
    os._exit(code)
