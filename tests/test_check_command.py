"""`ablate check` from the outside: what it takes, prints and ends with."""

from __future__ import annotations

import json

import pytest

STAGE = """from ablation.stage import Stage
STAGE = Stage(name="mine", after="{after}", title="mine", changes={changes}{more})
"""


def write(tmp_path, changes, more="", after="patch_pca", name="mine.py"):
    path = tmp_path / name
    path.write_text(STAGE.format(after=after, changes=changes, more=more))
    return path


def test_a_stage_that_does_what_it_says_passes(ablate, tmp_path):
    path = write(tmp_path, {"train.beta2": 0.95})
    answer = ablate("check", path)
    assert answer.code == 0
    assert "train.beta2: 0.999 -> 0.95" in answer.out
    assert 'to hold it to them: effects=("training",)' in answer.out
    assert "passed" in answer.out


def test_a_stage_that_does_something_else_fails_with_the_reason(ablate, tmp_path):
    path = write(tmp_path, {"train.beta2": 0.95}, ', effects=("loss",)')
    answer = ablate("check", path)
    assert answer.code == 1
    assert "FAILED stage 'mine' declares the effect 'loss', but nothing of it was seen" in answer.out
    assert "FAILED stage 'mine' has the effect 'training' without declaring it" in answer.out


def test_a_change_that_changes_nothing_fails(ablate, tmp_path):
    answer = ablate("check", write(tmp_path, {"train.beta2": 0.999}), "--json")
    assert answer.code == 1
    assert "changes nothing: train.beta2 already is 0.999" in json.loads(answer.out)["stages"][0]["problems"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("x = 1", "defines no STAGE"),
        (STAGE.format(after="patch_pc", changes={"train.beta2": 0.95}, more=""), "stage 'mine': its parent 'patch_pc' does not exist"),
        (STAGE.format(after="patch_pca", changes={"train.beta3": 0.95}, more=""), "stage 'mine': unknown setting 'train.beta3'"),
        (
            STAGE.format(after="patch_pca", changes={"train.beta2": 0.9}, more=", effects=('los',)"),
            "unknown effect 'los'. Did you mean loss",
        ),
    ],
)
def test_a_file_that_cannot_be_used_fails_with_its_name(ablate, tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    answer = ablate("check", path)
    assert answer.code == 1
    assert str(path) in answer.out
    assert said in answer.out


def test_usage_errors_end_with_2(ablate, tmp_path):
    assert "nothing to check" in ablate("check").error
    assert "does not exist" in ablate("check", tmp_path / "none.py").error
    assert "Did you mean predict_clean" in ablate("check", "predict_clea").error
    assert "'baseline' is the root" in ablate("check", "baseline").error
    assert "unknown scale" in ablate("check", "patch_pca", "--scale", "smok").error


@pytest.mark.slow
def test_all_built_in_stages_pass(ablate):
    answer = ablate("check", "--all", "--json")
    document = json.loads(answer.out)
    assert (answer.code, document["passed"], len(document["stages"])) == (0, True, 13)
