"""The ready studies' definitions: rows, variants (named sets of settings) and columns, read from `reports/studies/NAME.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ablation.errors import ConfigError
from ablation.report.definitions import ControlDefinition, Definition, definitions_folder, read_definition

OPERATIONS = {"times", "from_middle", "by_value", "property"}
"""What a setting may be beside a plain value: a multiple of the scale's own value, a block counted from the middle of the
network, a value looked up by the scale's own one, or a property of the configuration."""

CONTROL_TITLES = {"random_init": "untrained network", "pca_features": "patch-PCA features", "chance": "chance"}


class SweepRow(Definition):
    """One row: a stage, and settings that hold in all of its variants."""

    name: str
    stage: str
    title: str
    set: dict[str, Any] = Field(default_factory=dict)
    labels_used: bool = False


class Variant(Definition):
    """One variant: a named set of settings, moved together.

    title, paper: may name settings of the resolved configuration in braces. otherwise: the title where there is no such
    configuration at a scale. paper: the column of the paper's number (default: the name). rows: only these (default: all).
    """

    name: str
    title: str
    set: dict[str, Any] = Field(default_factory=dict)
    rows: tuple[str, ...] = ()
    otherwise: str | None = None
    paper: str | None = None
    x: float | None = None


class CitedLine(Definition):
    """A line that shows one number of the paper about another method."""

    row: str
    column: str
    title: str
    size: str


class Axis(Definition):
    """The horizontal axis of a study's figure; `of` names a setting in braces, unless the variants give their own x.

    level: a variant that has no place on the axis and is drawn as a line across.
    """

    title: str
    scale: Literal["linear", "log", "ordinal"]
    of: str | None = None
    level: str | None = None


class SweepColumn(Definition):
    """One column; 'variant' names the variant, 'reference' shows the metric of the reference variant."""

    name: str
    kind: Literal["title", "variant", "metric", "reference", "change", "published", "comparability"]
    title: str
    metric: str | None = None
    titled_by: str | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> SweepColumn:
        if self.kind not in ("title", "variant") and self.metric is None:
            raise ValueError(f"column {self.name} of kind {self.kind} needs a metric")
        return self


class SweepDefinition(Definition):
    """A ready study: rows crossed with variants.

    layout: list (a line per row and variant), grid (rows down, variants across, one metric) or best (a line per row, at the
    variant with the best mean of `choose_by`). reference: the variant that changes are taken from. varies: protocol fields
    that the study moves on purpose, so that differences across them are shown.
    """

    table: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["sweep"]
    layout: Literal["list", "grid", "best"]
    title: str
    about: str
    source: str  # where the paper has it, or who asked for it
    command: str
    metric: str
    rows: tuple[SweepRow, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)
    columns: tuple[SweepColumn, ...] = ()
    paper: str | None = None
    reference: str | None = None
    choose_by: str | None = None
    varies: tuple[str, ...] = ()
    axis: Axis | None = None
    cited: tuple[CitedLine, ...] = ()
    controls: tuple[Literal["random_init", "pca_features", "chance"], ...] = ()
    checkpoints: bool = False
    notes: tuple[str, ...] = ()

    @property
    def paper_table(self) -> str:
        """The name under which the paper's numbers of this study are kept."""
        return self.paper or self.table

    @property
    def control_lines(self) -> tuple[ControlDefinition, ...]:
        """The reference lines below the table."""
        return tuple(ControlDefinition(control=control, title=CONTROL_TITLES[control]) for control in self.controls)

    def pairs(self) -> list[tuple[SweepRow, Variant]]:
        """List every row with each of its variants, in order."""
        return [(row, variant) for row in self.rows for variant in self.variants if not variant.rows or row.name in variant.rows]

    @model_validator(mode="after")
    def _is_consistent(self) -> SweepDefinition:
        rows, variants = [row.name for row in self.rows], [variant.name for variant in self.variants]
        if len(set(rows)) != len(rows) or len(set(variants)) != len(variants):
            raise ValueError("a row or a variant appears twice")
        if unknown := {row for variant in self.variants for row in variant.rows} - set(rows):
            raise ValueError(f"a variant names the unknown row {min(unknown)}")
        if self.reference is not None and self.reference not in variants:
            raise ValueError(f"the reference {self.reference} is no variant")
        if self.layout != "grid" and not self.columns:
            raise ValueError(f"a study of layout {self.layout} needs columns")
        if self.layout == "best" and not (self.choose_by and self.reference):
            raise ValueError("layout best needs choose_by and reference")
        needs_reference = any(column.kind in ("change", "reference") for column in self.columns)
        if needs_reference and self.reference is None:
            raise ValueError("a change needs a reference")
        for settings in [row.set for row in self.rows] + [variant.set for variant in self.variants]:
            for path, value in settings.items():
                _check_value(path, value)
        return self


def _check_value(path: str, value: Any) -> None:
    """Refuse a value that is neither plain nor one known operation."""
    if not isinstance(value, dict):
        return
    operations = set(value) - {"when_unset"}
    if len(operations) != 1 or not operations <= OPERATIONS:
        raise ValueError(f"{path}: {value} is not one of {', '.join(sorted(OPERATIONS))}")


def sweeps_folder() -> Path:
    """Return the folder of the ready studies' definitions."""
    return definitions_folder() / "studies"


def sweep_names() -> tuple[str, ...]:
    """List the ready studies beside the paper's numbered tables, in alphabetical order."""
    return tuple(sorted(path.stem for path in sweeps_folder().glob("*.yaml")))


def load_sweep(name: str) -> SweepDefinition:
    """Read and check one ready study; an unknown name raises ConfigError listing the valid ones."""
    names = sweep_names()
    if name not in names:
        raise ConfigError(f"--table {name} does not exist", f"Give one of 1, 2, 3, {', '.join(names)}.")
    definition = read_definition(sweeps_folder() / f"{name}.yaml", SweepDefinition)
    if definition.table != name:
        raise ConfigError(f"{name}.yaml defines the table {definition.table}", "Give file and table one name.")
    return definition
