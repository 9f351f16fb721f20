"""From a ready study's definition to cells at a scale: settings relative to the scale become values, the impossible gets a reason.

A variant that changes nothing is the stage's own cell, so that it is shared with the ladder and with other studies. Light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ablation.config import Config, apply, get_value
from ablation.denoiser.sizes import SIZES
from ablation.design import Cell, make_cell
from ablation.diffusion.feasible import multi_level
from ablation.errors import ConfigError
from ablation.stage import StageTree

if TYPE_CHECKING:  # at run time, reading definitions is left to who needs one
    from ablation.report.sweep_definitions import SweepDefinition, SweepRow, Variant


@dataclass(frozen=True)
class Place:
    """Where a result stands in a ready study, with its title at this scale and the paper's column it is held against."""

    table: str
    row: str
    column: str
    title: str
    paper: str
    x: float | None


@dataclass(frozen=True)
class Entry:
    """One row and variant of a ready study at a scale; reason says why it cannot exist there, and is empty where it can."""

    place: Place
    stage: str
    overrides: Mapping[str, Any]
    reason: str = ""


def expand(definition: SweepDefinition, tree: StageTree, settings: Mapping[str, Any]) -> list[Entry]:
    """Resolve every row and variant of a definition over the tree's scale and the study's settings."""
    return [_entry(definition, row, variant, tree, settings) for row, variant in definition.pairs()]


def cells_of(entries: Iterable[Entry], tree: StageTree, seeds: Sequence[int], settings: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of the possible entries, each once, every seed of each."""
    cells: dict[str, Cell] = {}
    for entry in entries:
        for seed in seeds if not entry.reason else ():
            cell = make_cell(tree, entry.stage, seed, entry.overrides, settings)
            cells.setdefault(cell.id, cell)
    return list(cells.values())


def places_of(entries: Iterable[Entry], cell: Cell) -> list[dict[str, Any]]:
    """Return where a cell stands, as plain data."""
    if cell.control:
        return []
    return [
        asdict(entry.place)
        for entry in entries
        if not entry.reason and entry.stage == cell.stage and tuple(sorted(entry.overrides.items())) == cell.overrides
    ]


def _entry(definition: SweepDefinition, row: SweepRow, variant: Variant, tree: StageTree, settings: Mapping[str, Any]) -> Entry:
    """Resolve one row and variant."""
    own = apply(tree.resolve(row.stage), settings)
    overrides: dict[str, Any] = {}
    try:
        overrides = resolve(own, {**row.set, **variant.set})
        config = make_cell(tree, row.stage, 0, overrides, settings).config
        if "probe.timestep" in overrides and not multi_level(config.process):
            raise ConfigError("there is one noise level, and the network is told the same time step always")
    except ConfigError as error:
        title = variant.otherwise or (variant.name if "{" in variant.title else variant.title)
        place = Place(definition.table, row.name, variant.name, title, variant.paper or variant.name, variant.x)
        return Entry(place, row.stage, overrides, error.problem.removeprefix(f"stage '{row.stage}': "))
    place = Place(
        definition.table,
        row.name,
        variant.name,
        spell(variant.title, config),
        spell(variant.paper or variant.name, config),
        _position(definition, variant, config),
    )
    return Entry(place, row.stage, overrides)


def resolve(own: Config, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn settings relative to a configuration into values, and leave out those that it has already.

    Raises ConfigError for a value that does not exist at this scale, such as half a pixel or a block beyond the depth.
    """
    values: dict[str, Any] = {}
    for path, value in wanted.items():
        if not isinstance(value, dict):
            values[path] = tuple(value) if isinstance(value, list) else value
        elif "property" not in value and (found := _relative(own, path, value)) is not None:
            values[path] = found
    changed = apply(own, values)
    for path, value in wanted.items():
        if isinstance(value, dict) and "property" in value:
            values[path] = getattr(changed, value["property"])
    apply(own, values)
    return {path: value for path, value in values.items() if value != get_value(own, path)}


def _relative(own: Config, path: str, value: Mapping[str, Any]) -> Any:
    """Resolve one relative value; None leaves the setting alone."""
    now = get_value(own, path)
    if "times" in value:
        if now is None or ("when_unset" in value and get_value(own, value["when_unset"]) is not None):
            return None
        product = now * value["times"]
        if isinstance(now, int) and product != int(product):
            raise ConfigError(f"{path} would be {product:g} at this scale")
        return int(product) if isinstance(now, int) else product
    if "from_middle" in value:
        depth, block = SIZES[own.denoiser.size].depth, encoder_blocks(own) + value["from_middle"]
        if not 1 <= block <= depth:
            raise ConfigError(f"the network has blocks 1 to {depth}, so there is no block {block}")
        return block
    if now not in value["by_value"]:
        raise ConfigError(f"there is no such variant of {path} = {now}")
    return value["by_value"][now]


def encoder_blocks(config: Config) -> int:
    """Return how many blocks are probed as the encoder."""
    return config.probe.block or config.denoiser.encoder_depth or SIZES[config.denoiser.size].half


def spell(text: str, config: Config) -> str:
    """Fill in braces of a text: any setting as {section.name}, {block} of {depth}, {length} of the training, {size} of the encoder."""
    size, train = SIZES[config.denoiser.size], config.train
    words = {
        "block": encoder_blocks(config),
        "depth": size.depth,
        "length": f"{train.steps} steps" if train.steps is not None else f"{train.epochs:g} epochs",
        "size": f"{encoder_blocks(config)} blocks of width {size.width}",
    }
    return text.format(**{name: getattr(config, name) for name in Config.model_fields}, **words)


def _position(definition: SweepDefinition, variant: Variant, config: Config) -> float | None:
    """Return where a variant stands on the figure's horizontal axis."""
    if definition.axis is None or definition.axis.of is None:
        return variant.x
    if variant.name == definition.axis.level:
        return None
    return float(spell(definition.axis.of, config))
