"""The tables' definitions: which rows and columns each has, read from `reports/tableN.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ablation.errors import ConfigError

TABLES = ("1", "2", "3")


class Definition(BaseModel):
    """Base of the definitions: frozen and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


D = TypeVar("D", bound=Definition)


class RowDefinition(Definition):
    """One stage of a table; labels_used only serves a row that has no result to say so itself."""

    stage: str
    title: str
    step_title: str | None = None  # what the whole trajectory calls it, where the table's title is too short
    labels_used: bool = False


class ControlDefinition(Definition):
    """One reference line below a table."""

    control: Literal["random_init", "pca_features", "chance"]
    title: str


class ColumnDefinition(Definition):
    """One column; titled_by names the protocol field whose value becomes the title."""

    name: str
    kind: Literal["title", "metric", "change", "published", "comparability"]
    title: str
    metric: str | None = None
    titled_by: str | None = None
    with_change: bool = False

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> ColumnDefinition:
        if self.kind != "title" and self.metric is None:
            raise ValueError(f"column {self.name} of kind {self.kind} needs a metric")
        return self


class TableDefinition(Definition):
    """A ladder (stages down, measures across) or a grid (stages down, values of one setting across)."""

    table: Literal["1", "2", "3"]
    kind: Literal["ladder", "grid"]
    title: str
    command: str
    rows: tuple[RowDefinition, ...] = Field(min_length=1)
    controls: tuple[ControlDefinition, ...] = ()
    columns: tuple[ColumnDefinition, ...] = ()
    metric: str | None = None
    setting: str | None = None
    values: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> TableDefinition:
        stages = [row.stage for row in self.rows]
        if len(set(stages)) != len(stages):
            raise ValueError("a stage appears twice")
        if self.kind == "ladder" and (not self.columns or self.columns[0].kind != "title"):
            raise ValueError("a ladder needs columns, the first of kind title")
        if self.kind == "grid" and not (self.metric and self.setting and self.values):
            raise ValueError("a grid needs metric, setting and values")
        return self


class StepsDefinition(Definition):
    """The tests of a ladder's steps; smallest_effect, in points, serves studies that were not given their own before they ran."""

    metric: Literal["linear_probe_top1"]
    smallest_effect: float = Field(gt=0)
    step_title: str
    image_title: str
    design_title: str


def load_steps_definition(folder: Path | None = None) -> StepsDefinition:
    """Read and check the definition of the step tests; a broken or missing file raises ConfigError."""
    try:
        return read_definition((folder or definitions_folder()) / "steps.yaml", StepsDefinition)
    except OSError as error:
        raise ConfigError(f"the step tests have no readable definition: {error.strerror}", "Reinstall the package.") from None


def definitions_folder() -> Path:
    """Find the folder of table definitions: inside the package (a wheel), else beside it (a checkout)."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_reports", package.parent / "reports"):
        if (folder / "table1.yaml").is_file():
            return folder
    raise ConfigError("the table definitions (table1.yaml) were not found", "Reinstall the package, or run from a complete checkout.")


def load_definition(table: str, folder: Path | None = None) -> TableDefinition:
    """Read and check one table's definition; a broken file raises ConfigError naming the first bad field."""
    try:
        return read_definition((folder or definitions_folder()) / f"table{table}.yaml", TableDefinition)
    except OSError as error:
        raise ConfigError(f"table {table} has no readable definition: {error.strerror}", f"The tables are {', '.join(TABLES)}.") from None


def read_definition(path: Path, kind: type[D]) -> D:
    """Read and check one definition file; a broken one raises ConfigError naming the first bad field, an unreadable one OSError."""
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not YAML: {error}", "Mend the line it names.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise ConfigError(
            f"{path.name}: {where}: {first['msg']}", "Mend that field; definitions.py and sweep_definitions.py declare them all."
        ) from None


def load_definitions(folder: Path | None = None) -> tuple[TableDefinition, ...]:
    """Read all three definitions."""
    return tuple(load_definition(table, folder) for table in TABLES)


def ladder_rows(definitions: tuple[TableDefinition, ...]) -> tuple[RowDefinition, ...]:
    """List every built-in row once, in the order of the whole trajectory (Fig. 6)."""
    rows: dict[str, RowDefinition] = {}
    for definition in definitions:
        for row in definition.rows:
            rows.setdefault(row.stage, row.model_copy(update={"title": row.step_title or row.title}))
    return tuple(rows.values())
