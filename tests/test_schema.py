"""The JSON schemas accept what we ship and refuse what the configuration refuses."""

from __future__ import annotations

import json

import jsonschema
import pytest

from ablation.config import Config, field_names
from ablation.discover import builtin_folder, read_yaml, scale_names
from ablation.schema import config_schema, scale_schema

CONFIG, SCALE = (jsonschema.Draft202012Validator(schema) for schema in (config_schema(), scale_schema()))


@pytest.mark.parametrize("name", scale_names())
def test_every_built_in_scale_file_is_valid(name):
    SCALE.validate(read_yaml(builtin_folder() / "scales" / f"{name}.yaml"))


def test_the_baseline_and_every_resolved_stage_are_valid(tree):
    CONFIG.validate(read_yaml(builtin_folder() / "baseline.yaml")["config"])
    for stage in tree.ordered():
        CONFIG.validate(tree.resolve(stage.name).model_dump(mode="json"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"trian": {}},
        {"train": {"stepz": 3}},
        {"train": {"steps": "many"}},
        {"train": {"steps": -1}},
        {"denoiser": {"size": "huge"}},
        {"probe": {"weight_decays": ["a"]}},
        {"process": {"schedule": 3}},
        {"data": "scenes"},
    ],
)
def test_what_the_configuration_refuses_the_schema_refuses(wrong):
    assert not SCALE.is_valid(wrong)
    assert not CONFIG.is_valid(wrong)


def test_names_of_parts_are_offered_and_others_allowed():
    assert CONFIG.is_valid({"process": {"schedule": "a_plugins"}})
    schedule = config_schema()["$defs"]["ProcessConfig"]["properties"]["schedule"]
    assert "linear_sigma" in schedule["anyOf"][0]["enum"]


def test_every_setting_has_its_words_and_its_default():
    definitions = config_schema()["$defs"]
    for path in field_names():
        section, _, name = path.partition(".")
        about = definitions[type(getattr(Config(), section)).__name__]["properties"][name]
        assert about["description"], path
        assert "default" in about, path


def test_only_a_scale_has_a_description():
    assert SCALE.is_valid({"description": "small"})
    assert not CONFIG.is_valid({"description": "small"})


def test_the_command_prints_them(ablate):
    assert json.loads(ablate("schema").out) == config_schema()
    assert json.loads(ablate("schema", "scale").out) == scale_schema()
    answer = ablate("schema", "scales")
    assert (answer.code, "Did you mean scale?" in answer.error) == (2, True)
