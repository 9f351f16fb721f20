"""An archive of a study verifies on a machine without its run folder; a changed or a hostile one does not."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_verify import finish

from ablation.bundle import MANIFEST, unpack
from ablation.errors import ArtifactError, ConfigError
from ablation.report.build import print_and_write
from ablation.results_folder import gather
from ablation.store import CURVE, PREDICTIONS
from ablation.study import Request, prepare, write_specs
from ablation.terminal import console


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder with one finished and one failed stage, its reports written; and the study's name."""
    import numpy as np

    runs = tmp_path_factory.mktemp("bundle") / "runs"
    study = prepare(Request(runs=runs, through="drop_class_conditioning", scale="smoke", with_controls=False))
    write_specs(study)
    for job, spec in study.plan.jobs.items():
        if spec.kind in ("train", "probe", "fid") and "drop_class_conditioning-s0" in [cell.id for cell in study.plan.cells_of(job)]:
            if spec.kind == "train":
                study.store.mark_failed(job, "failed", "out of memory")
            continue
        metrics: dict[str, float] = {}
        files: dict[str, Any] = {"denoiser.safetensors": "weights"} if spec.kind == "train" else {}
        if spec.kind == "probe":
            correct = np.random.default_rng(1).random((2, 50)) < 0.4
            metrics, files = (
                {"linear_probe_top1": 100 * float(correct[0].mean()), "knn_top1": 100 * float(correct[1].mean())},
                {PREDICTIONS: correct},
            )
        elif spec.kind == "train":
            metrics, files[CURVE] = {"final_loss": 0.5, "steps": 10}, '{"step": 10, "loss": 0.5}\n'
        finish(study.store, job, metrics, files)
    study.store.write_study(study.document("ablate run"))
    document = study.store.study(study.name)
    folder = runs / "reports" / study.name
    source = gather(study.store, document, folder, {"pictures.json": b"{}\n"})
    print_and_write(source.records, folder, source.provenance, source.images, console())
    return runs, study.name


@pytest.fixture(scope="module")
def archive(packed: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of that study, made by the command."""
    from typer.testing import CliRunner

    from ablation.cli import app

    out = tmp_path_factory.mktemp("archive") / "study.tar.gz"
    answer = CliRunner().invoke(app, ["bundle", "--runs", str(packed[0]), "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    return out


def members(path: Path) -> dict[str, bytes]:
    """Read an archive's files."""
    with tarfile.open(path) as opened:
        return {entry.name: opened.extractfile(entry).read() for entry in opened}  # type: ignore[union-attr]


def repacked(path: Path, out: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]], extra: Any = ()) -> Path:
    """Write an archive again with its entries changed and further ones at the end."""
    with tarfile.open(path) as old, tarfile.open(out, "w:gz") as new:
        for entry in old:
            changed, content = change(entry, old.extractfile(entry).read())  # type: ignore[union-attr]
            changed.size = len(content)
            new.addfile(changed, io.BytesIO(content))
        for entry, content in extra:
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    return out


def same(entry: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return entry, content


def test_it_holds_results_reports_evidence_configurations_commands_and_versions(archive: Path, packed: Any) -> None:
    name = packed[1]
    files = members(archive)
    names = {entry.removeprefix(f"{name}/") for entry in files}
    assert {"results/results.jsonl", "results/provenance.json", "results/pictures/pictures.json", "reports/table1.tex"} <= names
    assert {"reports/index.html", "reports/trajectory.pdf", f"runs/studies/{name}.json", "commands.txt", "versions.json", MANIFEST} <= names
    assert "configs/baseline-s0.json" in names
    assert any(entry.endswith("/correct.npy") for entry in names)
    assert any(entry.endswith("/FAILED.json") for entry in names)
    assert not any(entry.endswith(".safetensors") for entry in names)
    commands = files[f"{name}/commands.txt"].decode()
    assert "ablate run --only baseline --scale smoke --seeds 0 --no-controls" in commands
    assert json.loads(files[f"{name}/versions.json"])["jobs"] == [{"torch": "2.13.0"}]


def test_it_verifies_without_the_run_folder_and_names_no_failed_job_as_a_difference(archive: Path, ablate: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy.tar.gz"
    shutil.copy(archive, elsewhere)
    answer = ablate("verify", "--bundle", elsewhere)
    assert (answer.code, answer.out) == (0, "")
    assert "everything agrees" in answer.err


def test_two_archives_of_one_study_are_the_same_bytes_and_weights_come_when_asked_for(
    archive: Path, packed: Any, ablate: Any, tmp_path: Path
) -> None:
    again = ablate("bundle", "--runs", packed[0], "--out", tmp_path / "again.tar.gz")
    assert again.code == 0
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()
    assert ablate("bundle", "--runs", packed[0], "--out", tmp_path / "heavy.tar.gz", "--weights").code == 0
    assert any(name.endswith("denoiser.safetensors") for name in members(tmp_path / "heavy.tar.gz"))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_manifest_is_one_that_sha256sum_reads(archive: Path, tmp_path: Path) -> None:
    study = unpack(archive, tmp_path)
    done = subprocess.run(["sha256sum", "--quiet", "-c", MANIFEST], cwd=study, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_change_that_the_manifest_was_mended_for_is_found_all_the_same(archive: Path, ablate: Any, tmp_path: Path) -> None:
    """Somebody edits a table and its checksum: deriving it again names the cell."""
    import hashlib

    files = members(archive)
    table = next(name for name in files if name.endswith("reports/table1.md"))
    edited = files[table].replace(b"(1/1)", b"(1/2)", 1)
    sums = {hashlib.sha256(content).hexdigest(): hashlib.sha256(new).hexdigest() for content, new in ((files[table], edited),)}

    def change(entry: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if entry.name == table:
            return entry, edited
        if entry.name.endswith(MANIFEST):
            for before, after in sums.items():
                content = content.replace(before.encode(), after.encode())
        return entry, content

    answer = ablate("verify", "--bundle", repacked(archive, tmp_path / "edited.tar.gz", change))
    assert answer.code == 1
    assert answer.out.startswith("table1.md: row 'DiT baseline', column 'Linear probe top-1")


def test_a_changed_file_is_named(archive: Path, tmp_path: Path) -> None:
    def change(entry: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return entry, content.replace(b"ablate run", b"ablate ruin", 1) if entry.name.endswith("commands.txt") else content

    with pytest.raises(ArtifactError, match=r"commands\.txt is not what the manifest says"):
        unpack(repacked(archive, tmp_path / "a.tar.gz", change), tmp_path / "out")


def entry_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


HOSTILE = {
    "up": (entry_of("study/../../evil"), "could lead elsewhere"),
    "absolute": (entry_of("/tmp/evil"), "could lead elsewhere"),
    "top": (entry_of("evil"), "could lead elsewhere"),
    "backslash": (entry_of("study\\..\\evil/x"), "could lead elsewhere"),
    "symlink": (entry_of("study/link", tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
    "hardlink": (entry_of("study/link", tarfile.LNKTYPE, "/etc/passwd"), "no plain file"),
    "device": (entry_of("study/null", tarfile.CHRTYPE), "no plain file"),
    "pipe": (entry_of("study/pipe", tarfile.FIFOTYPE), "no plain file"),
    "second folder": (entry_of("other/file"), "2 folders instead of one"),
    "surplus": (None, "not in the manifest"),
    "twice": (None, "twice"),
    "file below a file": (None, "both a file and a folder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_entries_are_refused_and_nothing_lands_outside(archive: Path, packed: Any, tmp_path: Path, case: str) -> None:
    entry, said = HOSTILE[case]
    made = {"surplus": "extra.txt", "twice": "commands.txt", "file below a file": "commands.txt/below"}
    entry = entry_of(f"{packed[1]}/{made[case]}") if entry is None else entry_of(entry.name, entry.type, entry.linkname)
    content = b"x" if entry.isreg() else b""
    path = repacked(archive, tmp_path / "hostile.tar.gz", same, [(entry, content)])
    into = tmp_path / "deep" / "out"
    into.mkdir(parents=True)
    with pytest.raises(ArtifactError, match=said):
        unpack(path, into)
    outside = {str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*") if into not in found.parents}
    assert outside == {"deep", "deep/out", "hostile.tar.gz"}


def test_an_archive_that_unpacks_to_far_too_much_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path, into = tmp_path / "bomb.tar.gz", tmp_path / "out"
    into.mkdir()
    with gzip.open(path, "wb", compresslevel=9) as packed:
        entry = tarfile.TarInfo("study/zeros")
        entry.size = 2**33
        packed.write(entry.tobuf())
        packed.write(bytes(2**22))
    with pytest.raises(ArtifactError, match="unpacks to more than"):
        unpack(path, into)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "plain"])
def test_a_damaged_archive_is_one_line(archive: Path, tmp_path: Path, ablate: Any, damage: str) -> None:
    content = archive.read_bytes()
    path = tmp_path / "damaged.tar.gz"
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\x1f\x8b" + bytes(200), "empty": b"", "plain": b"hello" * 99}[damage])
    answer = ablate("verify", "--bundle", path)
    assert answer.code == 1
    assert "is not a whole archive" in answer.error or "folders instead of one" in answer.error


def test_bad_use_is_one_line(packed: Any, ablate: Any, tmp_path: Path) -> None:
    assert "ends in .tar.gz" in ablate("bundle", "--runs", packed[0], "--out", tmp_path / "study.zip").error
    with pytest.raises(ConfigError, match="cannot read"):
        unpack(tmp_path / "none.tar.gz", tmp_path)


def test_a_study_that_does_not_verify_is_not_packed(packed: Any, ablate: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(packed[0], runs)
    path = runs / "reports" / packed[1] / "results.jsonl"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    answer = ablate("bundle", "--runs", runs, "--out", tmp_path / "study.tar.gz")
    assert answer.code == 1
    assert "not packed" in answer.err
    assert not (tmp_path / "study.tar.gz").exists()
