"""Every figure of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablation.report.curves import curves_csv, curves_figure, sweep_csv, sweep_figure
from ablation.report.definitions import TableDefinition
from ablation.report.figures import Omission, Picture, render
from ablation.report.learning import learning_picture
from ablation.report.photos import photo_pictures
from ablation.report.plane import plane_picture
from ablation.report.published import Published
from ablation.report.results import Record, Row, control_rows
from ablation.report.schedules import schedules_picture
from ablation.report.sweeps import Sweep, sweeps_of
from ablation.report.tables import Table
from ablation.report.trajectory import trajectory_csv, trajectory_figure, trajectory_steps, trajectory_words


def gallery(
    records: Sequence[Record],
    rows: Sequence[Row],
    tables: Sequence[Table],
    definitions: tuple[TableDefinition, ...],
    published: Published,
    images: Mapping[str, bytes],
) -> list[Picture | Omission]:
    """Draw every figure that the results can give, and name the others with the reason."""
    sweeps = sweeps_of(records)
    possible = tuple(record for record in records if record["state"] != "impossible")
    ladder = not sweeps or any(table.number in ("1", "3") for table in tables)
    grid = next((table for table in tables if table.number == "2"), None)
    return [
        *([_trajectory(possible, definitions, published), plane_picture(rows, published)] if ladder else []),
        *([_latent_dim(possible, grid, published)] if grid is not None else []),
        *(_sweep(sweep, published) for sweep in sweeps),
        learning_picture(rows),
        schedules_picture(possible),
        *photo_pictures(images),
    ]


def _trajectory(records: Sequence[Record], definitions: tuple[TableDefinition, ...], published: Published) -> Picture:
    """Draw the running accuracy (the paper's Fig. 6); it is always there, holes included."""
    steps = trajectory_steps(records, definitions, published)
    data = trajectory_csv(steps, control_rows(records, definitions[0]))
    files = render(trajectory_figure(records, definitions, published))
    return Picture("trajectory", *trajectory_words(steps), {**files, "csv": data.encode()}, data)


def _latent_dim(records: Sequence[Record], grid: Table, published: Published) -> Picture | Omission:
    """Draw Table 2 as curves, once a tokenizer has two points."""
    figure = curves_figure(grid, records, published)
    if figure is None:
        return Omission("Latent dimension", "no tokenizer has been measured at two latent dimensions; `ablate run --table 2` does it")
    alt = (
        "Linear-probe accuracy against latent dimension, one curve per tokenizer, this study left and the paper right; "
        "the same numbers stand in Table 2."
    )
    caption = "Bars are one standard deviation over seeds; curves are moved sideways a little so that bars do not hide each other."
    data = curves_csv(grid)
    return Picture("latent_dim", "Latent dimension", alt, caption, {**render(figure), "csv": data.encode()}, data)


def _sweep(sweep: Sweep, published: Published) -> Picture | Omission:
    """Draw a ready study as curves, where it has some."""
    figure, title = sweep_figure(sweep, published), sweep.definition.title
    if figure is None:
        return Omission(title, "the study has no curve, or fewer than two of its points are measured; its table holds what there is")
    alt = f"Curves of the study {sweep.definition.table}: {sweep.definition.about}. The same numbers stand in its table."
    data = sweep_csv(sweep, published)
    files = {**render(figure), "csv": data.encode()}
    return Picture(f"{sweep.definition.table}_curve", title, alt, "Bars are one standard deviation over seeds.", files, data)
