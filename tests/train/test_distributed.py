"""One training in several real processes: the numbers of one process, one writer, and an end that all agree on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablation.errors import DivergedError, Interrupted, LostProcessError
from ablation.train.distributed import ALONE, GradientSum, Meeting, Processes, _buckets
from ablation.train.loop import Monitor, Recipe, Trainer

CPU = torch.device("cpu")
FORKS = multiprocessing.get_context("forkserver")  # imports torch once, in a process without threads
FORKS.set_forkserver_preload(["ablation.train.loop", "torch._dynamo", "pytest"])  # the optimizer loads the second


class Pair:
    """Two networks trained in two phases, the second of which joins late, on noise and images; a stand-in for every objective."""

    phases = ("first", "second")

    def __init__(self, poison: int | None = None) -> None:
        """poison: an image whose loss is infinite."""
        torch.manual_seed(0)
        self.networks = {phase: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6)) for phase in self.phases}
        self.unused = nn.Linear(2, 2)
        self.poison = poison

    def modules(self) -> dict[str, nn.Module]:
        return {**self.networks, "unused": self.unused}

    def parameters(self, phase: str) -> list[nn.Parameter]:
        return [*self.networks[phase].parameters(), *(self.unused.parameters() if phase == "first" else ())]

    def begin_step(self, batch: dict[str, Tensor], noise: Any, progress: float) -> None:
        self.clean, self.progress = batch["images"], progress
        self.noisy = self.clean + noise.normal("noise", (6,))
        self.weights = (
            torch.where(batch["indices"] == self.poison, torch.inf, 1.0) if self.poison is not None else torch.ones(len(self.clean))
        )

    def loss(self, phase: str) -> tuple[Tensor | None, dict[str, Tensor]]:
        if phase == "second" and self.progress < 0.5:
            return None, {}
        errors = (self.networks[phase](self.noisy) - self.clean).square().mean(dim=1) * self.weights
        return errors.mean(), {f"{phase}_error": errors.detach().mean()}


class Rows:
    """Batches of fixed vectors."""

    images = 50

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: Any) -> np.ndarray:
        return indices

    def finish(self, indices: np.ndarray, noise: Any) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.stack([np.sin(np.arange(6) * (index + 1)) for index in indices])).float()
        return {"images": rows, "indices": torch.from_numpy(indices)}


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "steps": 8,
        "global_batch": 12,
        "lr": {"first": 1e-2, "second": 1e-2},
        "warmup_steps": 2,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "clip_grad": 0.5,
        "ema_decay": {"first": 0.9},
        "precision": "fp32",
        "seed": 3,
        "micro_batch": 12,
        "log_every": 1,
        "checkpoint_seconds": 1e9,
    }
    return Recipe(**{**fields, **changes})


def train(
    processes: Processes, folder: Path, should_stop: Callable[[], bool] = lambda: False, poison: int | None = None, **changes: Any
) -> Trainer:
    monitor = Monitor(lambda *_: None, lambda _: None, should_stop)
    trainer = Trainer(Pair(poison), Rows(), recipe(**changes), folder, monitor, CPU, processes)
    trainer.fit()
    return trainer


def state(trainer: Trainer) -> dict[str, Tensor]:
    found = {f"{name}.{key}": value for name, module in trainer.modules.items() for key, value in module.state_dict().items()}
    return found | {f"average.{key}": value for key, value in trainer.averages["first"].state().items()}


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def _process(task: Callable[..., Any], rank: int, size: int, port: int, arguments: tuple[Any, ...], answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        with Meeting(rank, size, rank, "127.0.0.1", port).begin() as processes:
            answers.put((rank, task(processes, *arguments)))
    except BaseException as error:  # noqa: BLE001 - for the test to judge
        answers.put((rank, error))
        answers.close()
        answers.join_thread()
        os._exit(1)


def together(size: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function in several processes and return what each returned or raised, in order of rank."""
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = FORKS.Queue()
    started = [FORKS.Process(target=_process, args=(task, rank, size, port, arguments, answers)) for rank in range(size)]
    for process in started:
        process.start()
    found = dict(answers.get(timeout=100) for _ in started)
    for process in started:
        process.join(30)
        assert process.exitcode is not None
    return [found[rank] for rank in range(size)]


def trained(processes: Processes, folder: Path, changes: dict[str, Any]) -> tuple[dict[str, np.ndarray], bool]:
    trainer = train(processes, folder, **changes)
    return {name: value.numpy() for name, value in state(trainer).items()}, trainer.curve is not None


@pytest.mark.parametrize(("size", "micro_batch"), [(2, 12), (3, 12), (2, 4), (4, 2), (2, 5)])
def test_losses_and_weights_are_those_of_one_process(tmp_path: Path, size: int, micro_batch: int) -> None:
    """Whether the processes divide a micro-batch, or take one or several each; up to the order of sums."""
    alone = train(ALONE, tmp_path / "alone", micro_batch=micro_batch)
    answers = together(size, trained, tmp_path / "shared", {"micro_batch": micro_batch})
    assert [writes for _, writes in answers] == [True] + [False] * (size - 1)
    for weights, _ in answers:
        assert all(np.array_equal(weights[name], answers[0][0][name]) for name in weights)  # all take the very same steps
    for name, value in state(alone).items():
        np.testing.assert_allclose(answers[0][0][name], value.numpy(), atol=2e-6)
    expected, found = curve(tmp_path / "alone"), curve(tmp_path / "shared")
    assert [entry.keys() for entry in found] == [entry.keys() for entry in expected]
    assert all(entry[name] == pytest.approx(other[name], abs=2e-6) for entry, other in zip(found, expected, strict=True) for name in other)
    assert {"loss", "second_loss"} <= expected[-1].keys()


def test_a_process_on_its_own_sends_nothing_and_watches_no_gradient() -> None:
    network = nn.Linear(3, 3)
    sums = GradientSum(network.parameters(), ALONE)
    sums.backward(network(torch.ones(2, 3)).sum(), last=True)
    sums.finish()
    assert sums.buckets == []
    assert not network.weight._post_accumulate_grad_hooks
    assert ALONE.agree(True, False) == (True, False)


def test_buckets_hold_every_parameter_once_last_ones_first_and_one_type_each() -> None:
    sizes = [5, 300, 7, 1, 40, 40]
    parameters = [nn.Parameter(torch.zeros(size, dtype=torch.float64 if size == 7 else torch.float32)) for size in sizes]
    frozen = nn.Parameter(torch.zeros(9), requires_grad=False)
    buckets = _buckets([*parameters, frozen], 400)
    assert [[parameter.numel() for parameter in bucket] for bucket in buckets] == [[40, 40, 1], [7], [300], [5]]


def exchanged(processes: Processes) -> list[Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(6)]
    resting = nn.Linear(4, 4)
    sums = GradientSum([p for layer in [resting, *layers] for p in layer.parameters()], processes, bucket_bytes=100)
    inputs = torch.full((1, 4), 1.0 + processes.rank)
    sent: list[int] = []
    for last in (False, True):
        hidden = inputs
        for layer in layers:
            hidden = layer(hidden)
        layers[0].weight.register_hook(lambda _: sent.append(len(sums.sent)))
        sums.backward(hidden.sum(), last)
    sums.finish()
    mean = processes.mean_over(2)(torch.tensor([float(processes.rank)]))
    first = processes.lead_first("thing", lambda: time.time())
    return [[layer.weight.grad.numpy() for layer in layers], resting.weight.grad, sent, float(mean), first]


def test_gradients_add_up_over_passes_and_processes_while_the_last_pass_runs() -> None:
    answers = together(4, exchanged)
    gradients, resting, sent, _, _ = answers[0]
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(6)]
    for value in (1.0, 2.0, 3.0, 4.0):
        for _ in range(2):
            hidden = torch.full((1, 4), value)
            for layer in layers:
                hidden = layer(hidden)
            hidden.sum().backward()
    for found, layer in zip(gradients, layers, strict=True):
        np.testing.assert_allclose(found, layer.weight.grad.numpy(), rtol=1e-5)
    assert resting is None
    assert sent[0] == 0  # nothing is sent in the first pass
    assert sent[-1] >= 2  # before the first layer has its gradient, buckets of later ones are on their way
    assert [mean for *_, mean, _ in answers] == [0.5, 0.5, 2.5, 2.5]
    assert answers[0][4] <= min(answer[4] for answer in answers[1:])


def stopping(processes: Processes, folder: Path, who: int) -> None:
    calls = iter(range(100))
    train(processes, folder, lambda: next(calls) >= 4 and processes.rank == who)


@pytest.mark.parametrize("after", [1, 3])
def test_a_stop_in_any_process_stops_all_and_another_number_of_them_goes_on(tmp_path: Path, after: int) -> None:
    straight = train(ALONE, tmp_path / "straight")
    answers = together(2, stopping, tmp_path / "shared", 1)
    assert [str(answer) for answer in answers] == ["stopped at step 5 of 8; a checkpoint is saved"] * 2
    assert all(isinstance(answer, Interrupted) for answer in answers)
    assert [path.name for path in (tmp_path / "shared").glob("checkpoint-*")] == ["checkpoint-000000005.safetensors"]
    if after == 1:
        weights = {name: value.numpy() for name, value in state(train(ALONE, tmp_path / "shared")).items()}
    else:
        weights = together(after, trained, tmp_path / "shared", {})[2][0]
    for name, value in state(straight).items():
        np.testing.assert_allclose(weights[name], value.numpy(), atol=2e-6)
    assert [entry["step"] for entry in curve(tmp_path / "shared")] == list(range(1, 9))


def poisoned(processes: Processes, folder: Path) -> None:
    """Make one image's loss infinite: one process meets it."""
    train(processes, folder, poison=7, checkpoint_seconds=0)


def test_a_loss_that_diverges_in_one_process_ends_all_with_step_and_checkpoint(tmp_path: Path) -> None:
    answers = together(2, poisoned, tmp_path)
    assert all(isinstance(answer, DivergedError) for answer in answers), answers
    assert str(answers[0]) == str(answers[1])
    assert "at step" in str(answers[0])
    assert "last good checkpoint" in str(answers[0])


def failing(processes: Processes, folder: Path, how: str) -> float:
    """Fail in process 1 at its third step, by an error or without a word; returns how long process 0 waited."""
    began = time.monotonic()
    calls = iter(range(100))

    def should_stop() -> bool:
        if processes.rank == 1 and next(calls) == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("broken on purpose")
        return False

    try:
        train(processes, folder, should_stop)
    except LostProcessError as error:
        raise LostProcessError(f"{error.problem} after {time.monotonic() - began:.0f} s") from None
    return 0.0


def test_a_process_that_fails_ends_the_others_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    lost, failed = together(2, failing, tmp_path, "error")
    assert isinstance(failed, ValueError)
    assert isinstance(lost, LostProcessError)
    assert "another process of this training ended" in str(lost)
    assert time.monotonic() - began < 60
