"""Merge what two commands of one name asked for into one study. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(before: Mapping[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study that keeps an earlier one's cells, what it found impossible, and its sessions; the later cell wins.

    `before` is empty for a new study. Cells stand in the later command's order, then in the earlier one's.
    """
    cells = {cell["id"]: cell for cell in before.get("cells", [])}
    cells.update({cell["id"]: _with_places(cell, cells.get(cell["id"])) for cell in study["cells"]})
    impossible = {cell["id"]: cell for cell in [*before.get("impossible", []), *study.get("impossible", [])]}
    order = {cell["id"]: place for place, cell in enumerate(study["cells"])}
    ordered = sorted(cells.values(), key=lambda cell: order.get(cell["id"], len(order)))
    return {**study, "cells": ordered, "impossible": list(impossible.values()), "sessions": before.get("sessions", [])}


def _with_places(cell: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Add to a cell the places in ready studies that an earlier command gave it."""
    places = [*cell.get("places", []), *(before or {}).get("places", [])]
    kept = {(place["table"], place["row"], place["column"]): place for place in reversed(places)}
    return {**cell, "places": list(kept.values())} if kept else cell
