"""Two commands of one name make one study."""

from ablation.merge import merged


def cell(name, *places):
    """Make a cell with places in tables."""
    return {"id": name, **({"places": [dict(zip(("table", "row", "column"), place, strict=True)) for place in places]} if places else {})}


def test_cells_and_their_places_are_kept():
    first = merged({}, {"name": "s", "cells": [cell("a", ("t", "r", "1")), cell("b")], "impossible": [{"id": "x"}]})
    again = merged({**first, "sessions": [1]}, {"name": "s", "cells": [cell("c"), cell("a", ("u", "r", "2"))], "impossible": [{"id": "y"}]})
    assert [one["id"] for one in again["cells"]] == ["c", "a", "b"]
    assert {place["table"] for place in again["cells"][1]["places"]} == {"t", "u"}
    assert "places" not in again["cells"][0]
    assert [one["id"] for one in again["impossible"]] == ["x", "y"]
    assert again["sessions"] == [1]


def test_the_same_place_is_kept_once():
    first = merged({}, {"name": "s", "cells": [cell("a", ("t", "r", "1"))]})
    assert merged(first, {"name": "s", "cells": [cell("a", ("t", "r", "1"))]})["cells"] == first["cells"]
