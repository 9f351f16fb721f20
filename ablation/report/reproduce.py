"""The command that runs one row again: scale, data, settings and seeds, spelled out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ablation.report.results import Record, setting

PATHS = ("tokenizer.perceptual_path", "fid.extractor_path", "denoiser.init_path")
"""Settings that say where a file lies; no record lists them among its overrides, but the run needs them."""
PLAIN = re.compile(r"[A-Za-z][\w./:-]*\Z")
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "none"}


def command_of(records: Sequence[Record]) -> str:
    """Return the command that runs the cells of some records of one configuration again, and nothing else.

    Records of a control name the stage whose network and latents it measures in their cell.
    """
    record = records[0]
    stage = record["stage"] or str(record["cell"]).partition(".")[0]
    seeds = ",".join(str(seed) for seed in sorted({one["seed"] for one in records}))
    words = ["ablate", "run", "--only", stage, "--scale", str(record["scale"]), "--seeds", seeds]
    words += _data(record)
    settings = {name: value for name, value in record["overrides"].items() if name not in ("data.source", "data.path")}
    settings |= {name: value for name in PATHS if (value := setting(record, name)) is not None}
    for name, value in sorted(settings.items()):
        words += ["--set", f"{name}={_value(value)}"]
    if record["control"] is None:
        words.append("--no-controls")
    return shlex.join(words)


def _data(record: Record) -> list[str]:
    """Return the option that chooses the images, where a study chose them."""
    source, path = record["overrides"].get("data.source"), setting(record, "data.path")
    if source is None:
        return [] if path is None else ["--set", f"data.path={_value(path)}"]
    if str(source).startswith("timm:"):
        return ["--data", str(source), *(["--set", f"data.path={_value(path)}"] if path is not None else [])]
    return ["--data", str(source) if path is None else f"{source}:{path}"]


def _value(value: Any) -> str:
    """Write a setting as the command line reads it: YAML, of which JSON is a part."""
    if isinstance(value, str) and PLAIN.match(value) and value.lower() not in WORDS:
        return value
    return json.dumps(value)


def changed_lines(provenance: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the settings in which a study differs from the defaults in every cell: name, default, here."""
    changed: Mapping[str, Sequence[Any]] = provenance.get("changed", {})
    return [(name, pair[0], pair[1]) for name, pair in sorted(changed.items())]
