"""Completion as a shell asks for it: through the environment of the `ablate` command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import environment

SCRIPT = "import sys; sys.argv[0] = 'ablate'; from ablation.cli import main; main()"
"""What the installed command `ablate` runs."""


def complete(line: str, **more: str) -> list[str]:
    """Ask as bash does: the words typed so far, the last of them unfinished."""
    asked = {"_ABLATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**environment(), **asked, **more}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ablate show predict_", ["predict_clean", "predict_original"]),
        ("ablate run --through drop_i", ["drop_input_scaling"]),
        ("ablate run --scale s", ["small", "smoke"]),
        ("ablate run --set process.targ", ["process.target="]),
        ("ablate run --launcher i", ["inline"]),
        ("ablate check inverse_pca_i", ["inverse_pca_input"]),
        ("ablate sch", ["schema"]),
    ],
)
def test_a_shell_is_offered_names(line, offered):
    assert complete(line) == offered


def test_values_of_a_setting_are_offered_after_the_equals_sign():
    offered = complete("ablate run --set process.schedule=linear")
    assert offered == ["process.schedule=linear_gamma_squared", "process.schedule=linear_sigma"]
    assert complete("ablate run --set denoiser.class_conditional=t") == ["denoiser.class_conditional=true"]


def test_stages_of_ones_own_are_offered_and_broken_ones_are_no_obstacle(tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "mine.py").write_text(
        "from ablation.stage import Stage\nSTAGE = Stage(name='mine', after='patch_pca', title='t', changes={'train.beta2': 0.95})\n"
    )
    assert complete(f"ablate run --stages {tmp_path} --through mi") == ["mine"]


def test_the_script_for_a_shell_can_be_had():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**environment(), "_ABLATE_COMPLETE": "source_bash"}, capture_output=True, text=True, check=True
    )
    assert "complete -o default -F _ablate_completion ablate" in run.stdout
