"""`ablate schema`: what an editor needs to complete and check settings."""

from __future__ import annotations

from typing import Annotated

import typer

from ablation.errors import ConfigError, nearest


def schema(
    name: Annotated[str, typer.Argument(metavar="config|scale", help="The whole configuration, or a scale file.")] = "config",
) -> None:
    """Print the JSON schema of the configuration, or of a scale file."""
    from ablation.schema import SCHEMAS
    from ablation.terminal import emit_json

    if name not in SCHEMAS:
        raise ConfigError(f"there is no schema '{name}'", nearest(name, SCHEMAS))
    emit_json(SCHEMAS[name]())
