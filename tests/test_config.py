import pytest

from ablation.config import Config, apply, describe_type, diff, field_names, from_nested
from ablation.errors import ConfigError


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown setting 'process.targt'.*process\.target"):
        apply(Config(), {"process.targt": "clean"})


def test_wrong_value_names_field_and_valid_values():
    with pytest.raises(ConfigError, match=r"process\.input_space.*'latnt'.*latent, image"):
        apply(Config(), {"process.input_space": "latnt"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tokenizer.latent_dim", "16"),
        ("tokenizer.latent_dim", 16.0),
        ("train.epochs", "many"),
        ("data.horizontal_flip", 1),
        ("train.global_batch", 0),
    ],
)
def test_types_and_bounds_are_strict(path, value):
    with pytest.raises(ConfigError, match=path):
        apply(Config(), {path: value})


def test_apply_changes_only_what_is_named():
    changed = apply(Config(), {"process.target": "clean", "tokenizer.latent_dim": 32})
    assert diff(Config(), changed) == {"tokenizer.latent_dim": (16, 32), "process.target": ("noise", "clean")}


def test_configurations_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Config().train.epochs = 1.0  # type: ignore[misc]


def test_every_setting_is_described():
    for path in field_names():
        section, _, name = path.partition(".")
        field = type(getattr(Config(), section)).model_fields[name]
        assert field.description, path
        assert describe_type(path)


def test_round_trip_through_json():
    config = apply(Config(), {"tokenizer.block_channels": [32, 64], "train.steps": 5})
    assert from_nested(config.model_dump(mode="json")) == config


def test_unknown_section_is_refused():
    with pytest.raises(ConfigError, match="unknown section 'proces'.*process"):
        from_nested({"proces": {}})
