from pathlib import Path

import pytest

from ablation.discover import builtin_folder, discover, load_scale, read_yaml, scale_names
from ablation.errors import ConfigError
from ablation.parts import load_part

GOOD = '''"""Longer memory of squared gradients."""
from ablation.stage import Stage
STAGE = Stage(name="{name}", after="{after}", title="beta 2 of 0.95", changes={{"train.beta2": 0.95}})
'''


def write(folder: Path, file: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / file
    path.write_text(text)
    return path


def test_a_loose_file_becomes_a_stage(tmp_path):
    path = write(tmp_path, "mine.py", GOOD.format(name="mine", after="patch_pca"))
    stage = discover([path], installed=False).stage("mine")
    assert stage.doc.startswith("Longer memory")
    assert stage.source.file == str(path)
    assert stage.source.origin == "--stages"


def test_a_folder_of_files(tmp_path):
    for name in ("one", "two"):
        write(tmp_path, f"{name}.py", GOOD.format(name=name, after="patch_pca"))
    write(tmp_path, "_helper.py", "raise RuntimeError('never loaded')")
    tree = discover([tmp_path], installed=False)
    assert {"one", "two"} <= set(tree.stages)
    assert not tree.broken


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "defines no STAGE"),
        ("raise SystemExit(3)", "SystemExit"),
        (GOOD.format(name="../up", after="patch_pca"), "not usable"),
        (
            "from ablation.stage import Stage\nSTAGE = Stage(name='s', after='baseline', title='t', changes={'train.beta3': 1})",
            "unknown setting",
        ),
    ],
)
def test_a_broken_file_is_named_and_the_rest_works(tmp_path, text, said):
    path = write(tmp_path, "bad.py", text)
    tree = discover([path], installed=False)
    assert len(tree.stages) == 14
    assert said in tree.broken[0].problem
    assert tree.broken[0].source.file == str(path)
    with pytest.raises(ConfigError, match=r"1 stage source\(s\) failed to load"):
        tree.stage("bad_one")


def test_loading_registers_nothing(tmp_path):
    path = write(tmp_path, "mine.py", GOOD.format(name="mine", after="patch_pca"))
    discover([path], installed=False)
    assert "mine" not in discover(installed=False).stages


def test_a_missing_path_is_an_error():
    with pytest.raises(ConfigError, match="does not exist"):
        discover(["no/such/file.py"], installed=False)


def test_parts_are_loaded_from_beside_the_stage_file(tmp_path):
    folder = tmp_path / "plugin"
    write(folder, "_part.py", "class Mine:\n    value = 3\n    def __init__(self, cfg, image_size): ...\n")
    text = (
        "from ablation.stage import Stage\n"
        "STAGE = Stage(name='own', after='patch_ae', title='t', changes={'tokenizer.kind': 'mine'}, "
        "provides={'tokenizer:mine': '_part.py:Mine'})"
    )
    tree = discover([write(folder, "own.py", text)], installed=False)
    assert load_part(tree.parts["tokenizer:mine"].entry()).value == 3


def test_scales():
    assert scale_names() == ("laptop", "paper", "small", "smoke")
    with pytest.raises(ConfigError, match="unknown scale 'smok'.*smoke"):
        load_scale("smok", discover(installed=False).root)


def test_paper_scale_is_the_papers_recipe():
    config = load_scale("paper", discover(installed=False).root)
    assert (config.denoiser.size, config.data.image_size, config.train.epochs, config.train.global_batch) == ("L", 256, 400, 2048)
    assert config.train.base_lr * config.train.global_batch / 256 == pytest.approx(8e-4)
    assert config.train.warmup_fraction * config.train.epochs == 100
    assert (config.probe.timestep, config.probe.epochs, config.probe.global_batch, config.fid.samples) == (10, 90, 16384, 50_000)


def test_yaml_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML"):
        read_yaml(write(tmp_path, "bad.yaml", "a: [1"))
    with pytest.raises(ConfigError, match="must hold a mapping"):
        read_yaml(write(tmp_path, "list.yaml", "- 1"))


def test_stage_files_stay_small():
    for path in builtin_folder().glob("*.py"):
        assert len(path.read_text().splitlines()) <= 35, path.name
