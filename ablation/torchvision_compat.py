"""Let torchvision (and so timm) import where its compiled operators cannot load.

A torchvision wheel built for another torch than the installed one cannot load its shared library, and then its import
fails with "operator torchvision::nms does not exist". Transforms, data sets and models need none of those operators, so
declaring the two schemas that the import looks for is enough. Import this module before timm or torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare nms and qnms where torchvision's compiled part cannot load; return the library to keep alive."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    for compiled in Path(spec.submodule_search_locations[0]).glob("_C*"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define(f"nms{_SCHEMA}")
    library.define(f"qnms{_SCHEMA}")
    return library


_LIBRARY = _declare_missing_operators()  # alive as long as this module: torch forgets the schemas with the object

NEEDED = _LIBRARY is not None
"""Whether the declarations were needed; `ablate doctor` reports it."""
