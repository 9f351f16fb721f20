"""Checkpoints: what is saved comes back bit for bit, and a damaged file never costs more than one interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ablation.errors import ArtifactError
from ablation.train.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from ablation.train.ema import Ema

pytestmark = pytest.mark.usefixtures("one_thread")

Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "another network": lambda path: save_tensors(path, {"module/net/weight": torch.zeros(2, 2)}, {"step": "9"}),
    "no step": lambda path: save_tensors(path, load_file(path)),
}


class State:
    """A small network with an optimizer and an average, trained for some steps."""

    def __init__(self, steps: int = 0) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        idle = nn.Linear(2, 2)
        self.modules: dict[str, nn.Module] = {"net": network, "idle": idle}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "net": torch.optim.AdamW(network.parameters(), lr=0.1, fused=True),
            "idle": torch.optim.AdamW(idle.parameters(), lr=0.1, fused=True),  # never steps: it has no state to save
        }
        self.averages = {"net": Ema(network, 0.9)}
        self.train(steps)

    def train(self, steps: int) -> None:
        for step in range(steps):
            images = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            self.optimizers["net"].zero_grad()
            self.modules["net"](images).square().mean().backward()
            self.optimizers["net"].step()
            self.averages["net"].update()

    def save(self, folder: Path, step: int) -> Path:
        return save_checkpoint(folder, step, self.modules, self.optimizers, self.averages)

    def load(self, folder: Path, log: list[str] | None = None) -> int:
        return load_checkpoint(folder, self.modules, self.optimizers, self.averages, (log if log is not None else []).append)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.modules["net"].state_dict().values(), *self.averages["net"].average]

    def equals(self, other: State) -> bool:
        return all(torch.equal(one, two) for one, two in zip(self.tensors(), other.tensors(), strict=True))


def test_a_training_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    state = State(steps=5)
    state.save(tmp_path, 5)
    state.train(5)
    resumed = State()
    assert resumed.load(tmp_path) == 5
    resumed.train(5)
    assert resumed.equals(state)


def test_no_checkpoint_is_step_0(tmp_path: Path) -> None:
    assert State().load(tmp_path) == 0


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    state = State()
    for step in (1, 2, 9, 10, 100):
        state.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000000010.safetensors", "checkpoint-000000100.safetensors"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: Damage) -> None:
    state = State(steps=4)
    state.save(tmp_path, 4)
    newest = State(steps=7).save(tmp_path, 7)
    damage(newest)
    log: list[str] = []
    resumed = State()
    assert resumed.load(tmp_path, log) == 4
    assert resumed.equals(state)
    assert len(log) == 1
    assert "checkpoint-000000007.safetensors cannot be used" in log[0]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_without_a_readable_checkpoint_nothing_is_started_over_or_deleted(tmp_path: Path, damage: Damage) -> None:
    state = State(steps=2)
    for step in (2, 3):
        damage(state.save(tmp_path, step))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ArtifactError, match=r"no checkpoint in .* can be read; newest: checkpoint-000000003\.safetensors\. Remove"
    ) as caught:
        State().load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unreadable_tensor_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors is unreadable.*Remove the file and run the same command again"):
        load_tensors(path)


def test_tensors_survive_the_file(tmp_path: Path) -> None:
    """Views, other layouts and shared memory are written as what they show."""
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "same": base, "turned": base.T, "row": base[1], "whole": torch.tensor(3, dtype=torch.int64)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"name": "x"})
    found, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"name": "x"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_average_follows_its_definition() -> None:
    network = nn.Linear(2, 1)
    average = Ema(network, 0.75)
    first = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    average.update()
    torch.testing.assert_close(average.state()["weight"], 0.75 * first + 0.25 * (first + 1))
    torch.testing.assert_close(average.state()["bias"], network.bias.detach())
