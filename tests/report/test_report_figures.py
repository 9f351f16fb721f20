"""What the figures show is what the results say, and what cannot be drawn is named."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ablation.config import Config, apply
from ablation.diffusion.schedules import coefficients
from ablation.report.definitions import load_definitions
from ablation.report.figures import Omission, Picture, tiles_of
from ablation.report.learning import learning_picture, panels
from ablation.report.photos import photo_pictures, sample_strips
from ablation.report.plane import plane_picture, plane_points
from ablation.report.published import load_published
from ablation.report.results import check_records, whole_trajectory
from ablation.report.schedules import schedule_curves, schedules_picture


def rows_of(records: Any) -> Any:
    return whole_trajectory(check_records(records), load_definitions())


def lines_of(picture: Picture) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(picture.files["csv"].decode())))


@pytest.mark.parametrize("steps", [1000, 250])
def test_schedules_are_those_that_training_uses(steps: int) -> None:
    base = apply(Config(), {"process.num_timesteps": steps})
    drawn = schedule_curves(base.process.model_dump(mode="json"))
    for name, schedule in (("gamma_squared_original", "ddpm_linear_beta"), ("gamma_squared_linear", "linear_gamma_squared")):
        gamma, _ = coefficients(apply(base, {"process.schedule": schedule}).process)
        np.testing.assert_allclose(drawn[name], gamma.square().numpy(), atol=1e-12)
    _, sigma = coefficients(apply(base, {"process.schedule": "linear_sigma"}).process)
    np.testing.assert_allclose(drawn["sigma_linear"], sigma.numpy(), atol=1e-12)
    assert drawn["t"][-1] == steps


def test_schedules_need_a_process(study: Any) -> None:
    assert isinstance(schedules_picture(study), Omission)
    for record in study:
        record["config"]["process"] = Config().process.model_dump(mode="json")
    picture = schedules_picture(study)
    assert isinstance(picture, Picture)
    lines = lines_of(picture)
    assert (lines[0]["t"], lines[-1]["t"], lines[-1]["gamma_squared_linear"]) == ("0", "1000", "0")


def curved(study: Any) -> Any:
    """Give every record a learning curve, and some steps losses of another scale."""
    for record in study:
        record["curve"] = {"step": [10, 20, 30], "loss": [1.0, 0.5, 0.25 + record["seed"]]}
        if record["stage"] in ("predict_clean", "predict_original"):
            record["incomparable"] = ["training loss"]
    return study


def test_incomparable_losses_stand_in_panels_of_their_own(study: Any) -> None:
    groups = [[row.stage for row in group] for group in panels(rows_of(curved(study)))]
    assert [group[0] for group in groups] == ["baseline", "predict_clean", "predict_original"]
    assert sum(map(len, groups)) == 14


def test_learning_curves_hold_every_seed(study: Any) -> None:
    picture = learning_picture(rows_of(curved(study)))
    assert isinstance(picture, Picture)
    lines = lines_of(picture)
    assert len(lines) == 14 * 3 * 3
    assert {line["loss"] for line in lines if line["stage"] == "baseline" and line["step"] == "30"} == {"0.25", "1.25", "2.25"}
    assert "DiT baseline 1 to 1.25" in picture.alt


def test_old_records_without_curves_are_an_omission_with_a_reason(study: Any) -> None:
    found = learning_picture(rows_of(study))
    assert isinstance(found, Omission)
    assert "no learning curve" in found.reason


def test_the_plane_joins_what_has_both_measures(holed: Any) -> None:
    points = plane_points(rows_of(holed), load_published())
    by_stage = {point.row.stage: point for point in points}
    assert by_stage["single_noise_level"].ours is None
    assert by_stage["linear_gamma_schedule"].paper == (93.2, 63.4)
    assert by_stage["patch_pca"].paper is None
    picture = plane_picture(rows_of(holed), load_published())
    assert isinstance(picture, Picture)
    lines = {line["stage"]: line for line in lines_of(picture)}
    assert lines["single_noise_level"]["distance"] == ""
    assert float(lines["baseline"]["distance"]) == 80.0
    assert "They are different rows." in picture.alt
    assert isinstance(plane_picture(rows_of([]), load_published()), Omission)


def images() -> dict[str, bytes]:
    """Make a folder of pictures: two images, clean, noised and denoised; noise; filters; samples of one stage."""
    draws = np.random.default_rng(0)
    clean = np.full((2, 8, 8, 3), 120.0)

    def sheet(rows: list[np.ndarray]) -> bytes:
        out = io.BytesIO()
        canvas = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(out, format="PNG")
        return out.getvalue()

    noise = draws.normal(0, 40, clean.shape)
    blocks = np.repeat(np.repeat(draws.normal(0, 40, (2, 2, 2, 3)), 4, axis=1), 4, axis=2)
    arrays = io.BytesIO()
    np.savez(arrays, patch_pca=np.eye(4, 48, dtype=np.float32), patch_ae=draws.normal(size=(3, 48)).astype(np.float32))
    about = {"stage": "predict_original", "seed": 0, "images": 2, "size": 8, "dataset": "scenes", "sigma": 0.577, "indices": [0, 1]}
    told = {
        "triplets": {**about, "timestep": 408, "gamma": 1.0},
        "noise": {**about, "latent_dim": 4},
        "filters": {"stages": {name: {"latent_dim": 4, "patch_size": 4, "seed": 0} for name in ("patch_ae", "patch_pca")}},
        "samples": {"stages": {"baseline": {"seed": 0, "images": 2}}},
    }
    return {
        "triplets.png": sheet([clean, clean + noise, clean + noise / 4]), "noise.png": sheet([clean, clean + noise, clean + blocks]),
        "filters.npz": arrays.getvalue(), "samples-baseline.png": sheet([clean]), "pictures.json": json.dumps(told).encode(),
    }  # fmt: skip


def test_pictures_of_images_say_what_they_show() -> None:
    drawn = {one.name: one for one in photo_pictures(images()) if isinstance(one, Picture)}
    assert set(drawn) == {"diagram", "triplets", "noise", "filters"}
    assert "falls from" in drawn["triplets"].alt
    assert "correlation of -0.0" in drawn["noise"].alt or "correlation of 0.0" in drawn["noise"].alt
    assert drawn["triplets"].files["data.png"] == images()["triplets.png"]
    assert drawn["filters"].files["npz"] == images()["filters.npz"]
    for picture in drawn.values():
        assert len(picture.alt) > 60
        assert picture.files["pdf"].startswith(b"%PDF")


def test_a_network_that_makes_images_worse_is_not_praised() -> None:
    made = images()
    worse = dict(made, **{"triplets.png": made["noise.png"]})
    tiles = tiles_of(made["triplets.png"], 2)[[0, 2, 1]]
    out = io.BytesIO()
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])).save(out, format="PNG")
    worse["triplets.png"] = out.getvalue()
    picture = next(one for one in photo_pictures(worse) if isinstance(one, Picture) and one.name == "triplets")
    assert "does not fall from" in picture.alt


def test_what_was_not_made_is_named_with_the_reason(study: Any) -> None:
    assert {one.reason for one in photo_pictures({}) if isinstance(one, Omission)} == {
        "no pictures were kept beside these results; `ablate report --runs` makes them"
    }
    listed = {"pictures.json": json.dumps({"triplets": {"reason": "the study has no stage predict_original"}}).encode()}
    first = photo_pictures(listed)[0]
    assert isinstance(first, Omission)
    assert first.reason == "the study has no stage predict_original"
    assert isinstance(sample_strips(rows_of(study), {}), Omission)


def test_samples_stand_in_the_ladders_order(study: Any) -> None:
    strips = sample_strips(rows_of(study), images())
    assert isinstance(strips, list)
    assert [strip.title for strip in strips] == ["DiT baseline"]
    assert "2 images sampled from DiT baseline, seed 0" in strips[0].alt
