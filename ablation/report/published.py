"""The paper's numbers as cited data, checked against a schema when read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ablation.errors import ConfigError

PaperTable = Literal[
    "1", "2", "3", "4", "figure_5", "figure_6", "augmentation", "training_length", "model_size", "timestep", "encoder_depth", "finetune",
    "target_by_tokenizer", "sigma", "residual_weight", "fid",
]  # fmt: skip
"""The paper's numbered tables and figures, its unnumbered tables by what they vary, and its numbers at places of our own tables."""

PUBLISHED = Path(__file__).parent / "published.yaml"


class Cited(BaseModel):
    """Base of the cited data: frozen, strict about types, closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(Cited):
    """Where the numbers are printed."""

    title: str
    authors: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    version: str
    year: int

    def __str__(self) -> str:
        return f"{self.authors}. {self.title}. arXiv {self.arxiv} {self.version}, {self.year}"


class Context(Cited):
    """The conditions a group of numbers was obtained under."""

    summary: str
    requires: dict[str, Any] = Field(min_length=1)


class Contradiction(Cited):
    """Another value that the paper gives for the same quantity."""

    value: float
    where: str


class Entry(Cited):
    """One number of the paper; value None is a blank of the printed table."""

    table: PaperTable
    row: str
    column: str
    metric: Literal["linear_probe_top1", "fid", "finetune_top1"]
    value: float | None
    decimals: int = Field(ge=0, le=3)
    status: Literal["printed", "derived"]
    context: str
    contradicted_by: Contradiction | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _is_rounded_as_printed(self) -> Entry:
        if self.value is not None and round(self.value, self.decimals) != self.value:
            raise ValueError(f"value {self.value} has more than {self.decimals} decimals")
        if self.value is not None and self.value < 0:
            raise ValueError(f"value {self.value} is negative")
        return self

    @property
    def text(self) -> str:
        """The number with the decimals it is printed with."""
        return "blank" if self.value is None else f"{self.value:.{self.decimals}f}"


class Published(Cited):
    """Every cited number, with its source and contexts."""

    source: Source
    contexts: dict[str, Context]
    entries: tuple[Entry, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _is_consistent(self) -> Published:
        seen: set[tuple[str, str, str]] = set()
        for entry in self.entries:
            place = (entry.table, entry.row, entry.column)
            if place in seen:
                raise ValueError(f"two entries for table {entry.table}, row {entry.row}, column {entry.column}")
            seen.add(place)
            if entry.context not in self.contexts:
                raise ValueError(f"unknown context {entry.context}")
        return self

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str], Entry]:
        return {(entry.table, entry.row, entry.column): entry for entry in self.entries}

    def find(self, table: str, row: str | None, column: str) -> Entry | None:
        """Return the entry of a table, row (a stage name) and column; None if the paper has none."""
        return self._by_place.get((table, row, column)) if row is not None else None


def load_published(path: Path = PUBLISHED) -> Published:
    """Read and check the cited numbers; a broken file raises ConfigError naming the first bad field."""
    try:
        return Published.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"the paper's numbers cannot be read from {path.name}: {error.strerror}", "Reinstall the package.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not YAML: {error}", "Mend the line it names.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise ConfigError(f"{path.name}: {where}: {first['msg']}", "Mend that entry; published.py declares every field.") from None
