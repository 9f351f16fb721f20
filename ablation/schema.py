"""JSON schemas of the configuration and of scale files, for editors. Light."""

from __future__ import annotations

from typing import Any

from ablation.config import BUILT_IN_NAMES, Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the schema of a whole configuration, as `config` in baseline.yaml and spec.json hold it.

    Settings that name a part list the built-in names and take any other text, which may be a plugin's.
    """
    schema = Config.model_json_schema()
    definitions = {about["title"]: about for about in schema["$defs"].values()}
    for path, names in BUILT_IN_NAMES.items():
        section, _, name = path.partition(".")
        title = type(getattr(Config(), section)).__name__
        field = definitions[title]["properties"][name]
        if names:
            field.pop("type")
            field["anyOf"] = [{"enum": list(names)}, {"type": "string"}]
    return {"$schema": DIALECT, **schema, "title": "Configuration"}


def scale_schema() -> dict[str, Any]:
    """Return the schema of a scale file: the same sections, and a description."""
    schema = config_schema()
    text = {"type": "string", "description": "what the scale is for"}
    return {**schema, "title": "Scale", "properties": {"description": text, **schema["properties"]}}


SCHEMAS = {"config": config_schema, "scale": scale_schema}
