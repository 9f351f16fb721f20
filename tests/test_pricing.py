"""What a plan costs before it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from ablation import cost
from ablation.config import Config, apply
from ablation.data.storage import class_count, image_counts
from ablation.errors import ConfigError, DataError
from ablation.pricing import ASSUMED_DEVIATION, Bill, count_images, detectable_effect, job_work, observed_deviation, price_plan
from ablation.rates import DATASHEETS, Rates, choose_rates, datasheet, read_calibrations, write_calibration
from ablation.study import Request, prepare, write_plan


def priced(runs: Path, **request: object) -> tuple[Bill, Mapping[str, str]]:
    study = prepare(Request(runs=runs, **{"scale": "paper", "data": "declared:imagenet", **request}))  # type: ignore[arg-type]
    return price_plan(study.plan, datasheet("h100")), {job: spec.kind for job, spec in study.plan.jobs.items()}


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> tuple[Bill, Mapping[str, str]]:
    return priced(tmp_path_factory.mktemp("runs"), through="single_noise_level")


def test_every_job_of_the_paper_scale_is_priced(paper):
    bill, kinds = paper
    assert [price.job for price in bill.jobs] == list(kinds)
    assert all(price.seconds > 0 for price in bill.jobs)
    assert all(price.flops > 0 for price in bill.jobs)
    train = next(price for price in bill.jobs if price.kind == "train")
    assert train.parameters == pytest.approx(341e6, rel=0.01)  # DiT-L with a conditioning of a quarter
    # 400 epochs at three forward passes of 80.7 G multiply-adds (Peebles & Xie, Table 4)
    assert train.flops == pytest.approx(400 * 1_281_167 * 3 * 2 * 80.7e9, rel=0.01)
    assert train.kept_bytes == 2 * 4 * train.parameters


def test_latents_of_the_conv_tokenizer_take_what_they_take(paper):
    encode = next(price for price in paper[0].jobs if price.kind == "encode")
    numbers = (2 * 1_281_167 + 50_000) * 256 * 16 * 2  # both mirrors and the test images; mean and deviation
    assert encode.kept_bytes == pytest.approx(2 * numbers, rel=0.01)


def test_sharing_saves_a_fifth_of_the_jobs_and_their_hours(paper):
    bill, _ = paper
    assert len(bill.jobs) <= 0.8 * bill.unshared_jobs
    assert bill.seconds() < bill.unshared_seconds


def test_a_study_without_anything_in_common_saves_nothing(tmp_path):
    bill, _ = priced(tmp_path, only=("baseline",), with_controls=False)
    assert bill.unshared_jobs == len(bill.jobs)
    assert bill.unshared_seconds == pytest.approx(bill.seconds())


def test_twice_the_epochs_cost_twice_the_training(tmp_path):
    first, second = (priced(tmp_path, only=("patch_pca",), settings={"train.epochs": epochs})[0] for epochs in (100.0, 200.0))
    hours = [next(price for price in bill.jobs if price.kind == "train").flops for bill in (first, second)]
    assert hours[1] == pytest.approx(2 * hours[0], rel=1e-3)


def test_what_is_not_known_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="ablate calibrate"):
        choose_rates(None, tmp_path)
    with pytest.raises(ConfigError, match="unknown accelerator 'h10'.*h100"):
        choose_rates("h10", tmp_path)
    with pytest.raises(DataError, match="does not say how many images"):
        image_counts(apply(Config(), {"data.source": "declared:"}).data)


def test_a_calibration_is_used_before_a_datasheet(tmp_path):
    mine = Rates("mine", "measured", True, {"fp32": 1e11}, {"denoiser training, fp32": 5e10}, 100.0, 1.0)
    write_calibration(tmp_path, mine)
    assert choose_rates(None, tmp_path) == mine
    assert choose_rates("h100", tmp_path) == datasheet("h100")
    assert mine.rate("denoiser training", "fp32") == 5e10
    assert mine.rate("denoiser forward", "bf16") == pytest.approx(0.4 * 1e11)  # neither measured nor a peak of its own
    write_calibration(tmp_path, Rates("mine", "again", True, {"fp32": 2e11}))
    assert {name: rates.basis for name, rates in read_calibrations(tmp_path).items()} == {"mine": "again"}
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(ConfigError, match="unreadable"):
        read_calibrations(tmp_path)


@pytest.mark.parametrize("name", DATASHEETS)
def test_datasheet_rates_are_marked_as_assumed(name):
    assert not datasheet(name).measured
    assert "assumed" in datasheet(name).basis


def test_declared_data_can_be_planned_but_not_run(tmp_path):
    study = prepare(Request(only=("patch_pca",), scale="paper", data="declared:2000,100,10", runs=tmp_path))
    assert class_count(next(iter(study.plan.cells.values())).config.data) == 10
    with pytest.raises(ConfigError, match="has no images: it is for planning"):
        write_plan(study, "ablate run")
    assert not (tmp_path / "jobs").exists()


def test_the_detectable_effect_is_the_tabulated_one():
    """n = 5 pairs: a standardised effect of 1.68 has power 0.8 at 5 % (e.g. Cohen 1988; G*Power 3)."""
    assert detectable_effect(5, 1.0) == pytest.approx(1.68, abs=0.01)
    assert detectable_effect(5, 0.5) == pytest.approx(0.84, abs=0.01)
    assert detectable_effect(1, 1.0) is None


def test_the_spread_is_taken_from_finished_results(tmp_path):
    study = prepare(Request(through="drop_class_conditioning", scale="smoke", seeds=(0, 1), runs=tmp_path, with_controls=False))
    assert observed_deviation(study.store) is None
    write_plan(study, "ablate run")
    top1 = {("baseline", 0): 10.0, ("baseline", 1): 12.0, ("drop_class_conditioning", 0): 13.0, ("drop_class_conditioning", 1): 13.0}
    for cell in study.plan.cells.values():
        study.store.mark_done(study.plan.roles[cell.id]["probe"], {"metrics": {"linear_probe_top1": top1[cell.stage, cell.seed]}})
    assert observed_deviation(study.store) == (pytest.approx(2**0.5), 1)  # differences 3 and 1


def test_plan_cost_prints_tables_and_json(tmp_path, capsys):
    from ablation.cli import app

    common = ["plan", "--only", "patch_pca", "--scale", "paper", "--data", "declared:imagenet", "--runs", str(tmp_path), "--cost"]
    app([*common, "--accelerator", "h100"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "datasheet of h100; assumed" in printed
    assert "sharing saves" in printed
    assert "one seed: no change between rows can be told from chance" in printed
    app([*common, "--accelerator", "h100", "--seeds", "0-2", "--json"], standalone_mode=False)
    bill = json.loads(capsys.readouterr().out)
    assert bill["deviation"] == ASSUMED_DEVIATION
    assert bill["hours"] == pytest.approx(sum(job["seconds"] for job in bill["jobs"]) / 3600)


def test_fine_tuning_has_its_price(runs):
    """Its steps, three forward passes of the encoder half each, are most of it."""
    changes = {"finetune.enabled": True, "finetune.steps": 100, "finetune.global_batch": 32}
    study = prepare(Request(only=("predict_original",), scale="smoke", runs=runs, settings=changes, with_controls=False))
    spec = next(spec for spec in study.plan.jobs.values() if spec.kind == "finetune")
    config = study.plan.cells["predict_original-s0"].config
    work = job_work(spec, config, count_images(config, None))
    half = cost.denoiser(config, 16, 2).forward
    assert work.total_flops > 3 * 100 * 32 * half
    assert work.total_flops < 4 * 100 * 32 * half + 2 * 2000 * 3 * half
