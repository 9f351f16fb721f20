"""One archive of a study that another machine can check: results, reports, what they were derived from, code and versions.

    STUDY/MANIFEST.sha256       the SHA-256 of every other file, as `sha256sum -c` reads it
    STUDY/results/              results.jsonl, provenance.json, pictures/
    STUDY/reports/              every table, figure and the page
    STUDY/runs/                 the study, and of each job its specification, record, predictions and learning curve
    STUDY/configs/CELL.json     the whole resolved configuration of each cell
    STUDY/commands.txt          the command of the study, and the one that runs each configuration again
    STUDY/versions.json         library versions of the jobs and of the reports; commits of the code
    STUDY/code/                 of each pinned snapshot its list of files with hashes, and its difference from the commit

Equal content gives equal bytes: entries are sorted, and carry no times and no owners. Light.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ablation.errors import ArtifactError, ConfigError
from ablation.results_folder import PICTURES, PROVENANCE, RESULTS, Source
from ablation.store import CURVE, DONE, FAILED, PREDICTIONS, SPEC, JobState, Store, atomic_path, read_json, sha256

MANIFEST, STATES = "MANIFEST.sha256", "states.json"
EVIDENCE = (SPEC, DONE, FAILED, CURVE, PREDICTIONS)
"""A job's files that numbers are derived from."""
MOST_FILES = 200_000
MOST_BYTES = 64 * 2**30
MOST_GROWTH = 300
"""An archive may unpack to this many times its size (and 64 MiB): far above what results compress to, far below a bomb."""
BLOCK = 2**20

Content = bytes | Path


def bundle_content(
    store: Store, document: Mapping[str, Any], source: Source, reports: Mapping[str, bytes], weights: bool
) -> dict[str, Content]:
    """List what goes into a study's archive, by name: bytes, or the file to copy."""
    folder = store.root / "reports" / document["name"]
    files: dict[str, Content] = {f"reports/{name}": content for name, content in reports.items()}
    files |= {f"results/{name}": folder / name for name in (RESULTS, PROVENANCE)}
    files |= {f"results/{PICTURES}/{name}": content for name, content in source.images.items()}
    files[f"runs/studies/{document['name']}.json"] = store.root / "studies" / f"{document['name']}.json"
    jobs = sorted({job for cell in document["cells"] for job in cell["jobs"].values()})
    states = {job: store.state(job) for job in jobs}
    unfinished = {job: [state.name, state.reason] for job, state in states.items() if state.name != "done"}
    files[f"runs/{STATES}"] = _json(unfinished)
    for job in jobs:
        kept = [store.job_folder(job) / name for name in EVIDENCE]
        if weights and states[job].name == "done":
            kept += sorted(store.job_folder(job).glob("*.safetensors"))
        files |= {f"runs/jobs/{job}/{path.name}": path for path in kept if path.is_file()}
    files |= {f"configs/{cell['id']}.json": _json(cell["config"]) for cell in document["cells"]}
    files["commands.txt"] = _commands(document, source.records).encode()
    files["versions.json"] = _json(_versions(document, source.records, reports))
    for snapshot in sorted((store.root / "snapshots").glob("*/SNAPSHOT.json")):
        for path in (snapshot, snapshot.with_name("dirty.diff")):
            files |= {f"code/{snapshot.parent.name}/{path.name}": path} if path.is_file() else {}
    return files


def _json(value: Any) -> bytes:
    """Write a value as JSON."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _commands(document: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """List the study's command, and that of each configuration with all of its seeds."""
    from ablation.report.reproduce import command_of

    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["control"] != "chance" and record["jobs"]:
            key = json.dumps([record["stage"], record["control"], record["overrides"], record["config"]], sort_keys=True)
            groups.setdefault(key, []).append(record)
    lines = ["# the whole study", document["command"], "", "# each configuration by itself"]
    return "\n".join([*lines, *dict.fromkeys(command_of(group) for group in groups.values())]) + "\n"


def _versions(document: Mapping[str, Any], records: Sequence[Mapping[str, Any]], reports: Mapping[str, bytes]) -> dict[str, Any]:
    """Collect the versions that jobs and reports recorded, and the commits that the jobs ran."""

    def distinct(name: str) -> list[Any]:
        return [json.loads(text) for text in sorted({json.dumps(record[name], sort_keys=True) for record in records if record[name]})]

    drawn = json.loads(reports["versions.json"])
    return {"jobs": distinct("versions"), "reports": drawn, "code": distinct("code"), "submitted": document.get("code", {})}


def write_bundle(files: Mapping[str, Content], name: str, out: Path) -> int:
    """Write an archive atomically; returns its size in bytes."""
    sums = "".join(f"{_sum(content)}  {entry}\n" for entry, content in sorted(files.items()))
    with (
        atomic_path(out) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in sorted([*files, MANIFEST]):
            _add(archive, f"{name}/{entry}", sums.encode() if entry == MANIFEST else files[entry])
    return out.stat().st_size


def _sum(content: Content) -> str:
    """Return the SHA-256 of bytes or of a file."""
    return sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: Content) -> None:
    """Add a file without its time and owner."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    entry.size = content.stat().st_size if isinstance(content, Path) else len(content)
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        archive.addfile(entry, file)


def unpack(path: Path, into: Path) -> Path:
    """Unpack an archive into an empty folder and return the study's folder in it.

    Refused, with the reason: anything but plain files below one folder (links, devices, absolute names, '..'), a name twice,
    more files or bytes than a study has, a file that the manifest lacks, lists differently, or lists in vain.
    """
    limit = min(MOST_BYTES, MOST_GROWTH * _size(path) + 64 * 2**20)
    names: dict[str, Path] = {}
    try:
        with tarfile.open(path, mode="r|gz") as archive:
            for entry, relative in _entries(archive, path, limit):
                if str(relative) in names:
                    raise _refused(path, f"it holds {entry.name} twice")
                target = names[str(relative)] = into / relative
                if target.exists() or any(into / parent in names.values() for parent in relative.parents):
                    raise _refused(path, f"{entry.name} is both a file and a folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                file = archive.extractfile(entry)
                assert file is not None  # a plain file, as checked
                with target.open("xb") as out:
                    shutil.copyfileobj(file, out, BLOCK)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a whole archive: {error}", "Copy it again.") from None
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1:
        raise _refused(path, f"it holds {len(tops)} folders instead of one")
    study = into / tops.pop()
    _check_manifest(path, study, {name.partition("/")[2] for name in names})
    return study


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "Give a file that `ablate bundle` wrote.") from None


def _refused(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is refused: {why}", "`ablate bundle` writes no such archive; do not unpack it.")


def _entries(archive: tarfile.TarFile, path: Path, limit: int) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Yield an archive's entries with their names, each checked before it is written."""
    total = 0
    for count, entry in enumerate(archive, 1):
        relative = PurePosixPath(entry.name)
        if not entry.isreg() or entry.issparse():
            raise _refused(path, f"{entry.name!r} is no plain file")
        if relative.is_absolute() or ".." in relative.parts or "\\" in entry.name or "\0" in entry.name or len(relative.parts) < 2:
            raise _refused(path, f"the name {entry.name!r} could lead elsewhere")
        total += entry.size
        if count > MOST_FILES or total > limit:
            raise _refused(path, f"it unpacks to more than {min(total, limit) / 2**20:.0f} MiB or {MOST_FILES} files")
        yield entry, relative


def _check_manifest(path: Path, study: Path, names: set[str]) -> None:
    """Raise unless the manifest lists exactly the files that are there, with their SHA-256."""
    if MANIFEST not in names:
        raise ArtifactError(f"{path} has no {MANIFEST}", "Only archives that `ablate bundle` wrote can be checked.")
    listed = {}
    for line in (study / MANIFEST).read_text(encoding="utf-8").splitlines():
        value, _, name = line.partition("  ")
        listed[name] = value
    if odd := sorted(listed.keys() ^ (names - {MANIFEST})):
        raise ArtifactError(f"{path}: {odd[0]} is {'missing' if odd[0] in listed else 'not in the manifest'}", "Copy the archive again.")
    for name, value in sorted(listed.items()):
        if sha256(study / name) != value:
            raise ArtifactError(f"{path}: {name} is not what the manifest says", "Copy the archive again.")


class UnpackedStore(Store):
    """The run folder of an archive: jobs are finished as they were when it was packed, though their large files are not there."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.unfinished = read_json(self.root / STATES)

    def state(self, job_id: str) -> JobState:
        """Return the state that the job had."""
        if job_id in self.unfinished:
            name, reason = self.unfinished[job_id]
            return JobState(name, reason)
        try:
            self.done(job_id)["metrics"]
        except (ArtifactError, KeyError, TypeError) as error:
            return JobState("new", f"{DONE} is unreadable: {error}")
        return JobState("done")
