"""A small study without sampling: two fitted tokenizers and a closed-form one, each with its own latents, training and probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import SINGLE_LEVEL

from ablation.study import Request, Study, prepare, write_specs


@pytest.fixture(scope="session")
def make_study(tiny_settings: dict, warm: Callable[[Path], Path]) -> Callable[..., Study]:
    """Plan the small study in a run folder, with changed settings or other stages, and write its specifications."""

    def make(runs: Path, settings: dict | None = None, **request) -> Study:
        chosen = {**tiny_settings, **SINGLE_LEVEL, "data.image_size": 16, **(settings or {})}
        fields = {"only": ("patch_ae", "patch_pca"), "scale": "smoke", "with_controls": False, **request}
        study = prepare(Request(runs=runs if runs.exists() else warm(runs), settings=chosen, **fields))
        write_specs(study)
        study.store.write_study(study.document("ablate run"))
        return study

    return make


PLUGIN_STAGE = '''"""A tokenizer of somebody else's."""
from ablation.stage import Stage
STAGE = Stage(name="own", after="patch_ae", title="own tokenizer", changes={"tokenizer.kind": "own"},
              provides={"tokenizer:own": "_own.py:Own"})
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], Path]:
    """Write a stage file with a tokenizer whose constructor runs the given statement; returns the stage file."""

    def write(statement: str) -> Path:
        folder = tmp_path / "plugin"
        folder.mkdir(exist_ok=True)
        (folder / "_own.py").write_text(
            "import os, sys\nfrom ablation.tokenizers.patch_ae import PatchAE\n\n\nclass Own(PatchAE):\n"
            f"    def __init__(self, cfg, image_size):\n        super().__init__(cfg, image_size)\n        {statement}\n"
        )
        (folder / "own.py").write_text(PLUGIN_STAGE)
        return folder / "own.py"

    return write
