"""The run folder: owns every file name, writes atomically, and knows each job's state from its own files.

    RUNS/jobs/KIND-KEY/      spec.json, DONE.json or FAILED.json, attempts.jsonl, job.log, progress.json, artifacts
    RUNS/studies/NAME.json   which cells a command asked for and which job serves each
    RUNS/cache/              decoded images and other things that can be made again
    RUNS/memo/               small derived values shared between jobs

A job is finished when DONE.json exists and every artifact it lists is there at its full size. This module is light.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ablation.errors import ArtifactError, ConfigError, nearest
from ablation.merge import merged

DONE, FAILED, SPEC, LOCK = "DONE.json", "FAILED.json", "spec.json", "lock.json"
ATTEMPTS, LOG, PROGRESS, CURVE = "attempts.jsonl", "job.log", "progress.json", "curve.jsonl"
SLURM = "slurm.json"
TOKENIZER, STATISTICS, REFERENCE = "tokenizer.safetensors", "statistics.safetensors", "reference.safetensors"
LATENTS, IMAGE_CACHE = "latents.json", "images.json"
DENOISER, DENOISER_AVERAGE = "denoiser.safetensors", "denoiser-average.safetensors"
PREDICTIONS, SAMPLES, CLASSIFIER = "correct.npy", "samples.png", "classifier.safetensors"
CHECKPOINT_PREFIX = "checkpoint-"
UNFINISHED = ".tmp"

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 90.0
"""A lock whose holder has not touched it for this long is taken over; several heartbeats may be lost on a slow file system."""


def latents_name(split: str, mirrored: bool, statistic: str, shard: int | None = None) -> str:
    """Name the raw-latents file of a split, mirror and statistic ("mean" or "std"), and of a shard where there are several."""
    number = "" if shard is None else f"-{shard:05d}"
    return f"latents-{split}-{'mirrored' if mirrored else 'plain'}-{statistic}{number}.npy"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.time_ns()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # unlike mkstemp, readable as the umask says
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        _unlink(temporary)
        raise _write_error(path, error) from error
    except BaseException as error:
        _unlink(temporary)
        if "No space left" in str(error) or "os error 28" in str(error):  # safetensors raises its own type
            raise _write_error(path, OSError(errno.ENOSPC, "no space left on device")) from error
        raise


def _unlink(path: Path) -> None:
    """Remove a file if that can be done."""
    with contextlib.suppress(OSError):
        path.unlink()


def _write_error(path: Path, error: OSError) -> ArtifactError:
    """Say what failed to be written and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(f"disk full while writing {path}", "Free some space and run the same command again; finished work is kept.")
    return ArtifactError(
        f"cannot write {path}: {error.strerror or error}", "Check the folder's permissions, or choose another with --runs."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; an unreadable one raises with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing", "Run the same command again to make it.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is unreadable: {error}", "Remove it and run the same command again.") from None


@dataclass(frozen=True)
class JobState:
    """What a job's files say: new, running, interrupted, done, failed, diverged or skipped, since when, and why."""

    name: str
    reason: str = ""
    when: str = ""


class Store:
    """All access to one run folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()

    # --- places -------------------------------------------------------------------------------------------------------
    @property
    def cache(self) -> Path:
        """The folder of things that can be made again."""
        return self.root / "cache"

    @property
    def sources(self) -> Path:
        """The folder of pinned stage files, each named by the hash of its content."""
        return self.root / "sources"

    def job_folder(self, job_id: str) -> Path:
        """Return a job's folder; it need not exist yet."""
        return self.root / "jobs" / job_id

    def artifact(self, job_id: str, name: str) -> Path:
        """Return the path of a finished job's artifact; a missing one raises."""
        path = self.job_folder(job_id) / name
        if not path.exists():
            raise ArtifactError(f"{path} is missing", "Run the same command again to make it.")
        return path

    def jobs(self) -> list[str]:
        """List the ids of all jobs that have a folder."""
        folder = self.root / "jobs"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    # --- state --------------------------------------------------------------------------------------------------------
    def prepare(self, job_id: str, spec: Mapping[str, Any]) -> None:
        """Make a job's folder and write its specification, unless the same one is there."""
        path = self.job_folder(job_id) / SPEC
        if not path.exists() or self.spec(job_id) != json.loads(json.dumps(spec)):
            write_json(path, spec)

    def spec(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's specification, or None where there is none that can be read."""
        try:
            content = read_json(self.job_folder(job_id) / SPEC)
        except ArtifactError:
            return None
        return content if isinstance(content, dict) else None

    def state(self, job_id: str) -> JobState:
        """Read a job's state from its own files."""
        folder = self.job_folder(job_id)
        if (folder / DONE).exists():
            return self._done_state(folder)
        if self.holder(job_id) is not None:
            return JobState("running", when=_when(folder / LOCK))
        if (folder / FAILED).exists():
            try:
                failed = read_json(folder / FAILED)
                return JobState(failed["state"], failed["reason"], _when(folder / FAILED))
            except (ArtifactError, KeyError):
                return JobState("failed", f"{folder / FAILED} is unreadable")
        if (folder / LOCK).exists() or self.has_checkpoint(job_id):
            return JobState("interrupted", when=_when(folder / ATTEMPTS))
        return JobState("new")

    def _done_state(self, folder: Path) -> JobState:
        """Check that a finished job's record can be read and its artifacts are whole."""
        try:
            for name, size in read_json(folder / DONE)["artifacts"].items():
                path = folder / name
                if not path.exists() or path.stat().st_size != size:
                    return JobState("new", f"{path} is missing or cut short")
        except (ArtifactError, KeyError, TypeError, AttributeError) as error:
            return JobState("new", f"{folder / DONE} is unreadable: {error}")
        return JobState("done", when=_when(folder / DONE))

    def done(self, job_id: str) -> dict[str, Any]:
        """Return a finished job's record: metrics, protocol, cost, versions."""
        content: dict[str, Any] = read_json(self.job_folder(job_id) / DONE)
        return content

    def has_checkpoint(self, job_id: str) -> bool:
        """Say whether an interrupted training can go on."""
        return any(self.job_folder(job_id).glob(f"{CHECKPOINT_PREFIX}*.safetensors"))

    def mark_done(self, job_id: str, record: Mapping[str, Any]) -> None:
        """Write DONE.json, listing every artifact with its size and SHA-256; the last thing a job does."""
        folder = self.job_folder(job_id)
        plain = {DONE, FAILED, SPEC, LOCK, ATTEMPTS, LOG, PROGRESS, SLURM}
        artifacts = {
            path.name: path.stat().st_size
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name not in plain and not path.name.startswith((".", CHECKPOINT_PREFIX, "tasks"))
        }
        sums = {name: sha256(folder / name) for name in artifacts}
        write_json(folder / DONE, {**record, "artifacts": artifacts, "sha256": sums})
        for leftover in (folder / FAILED, folder / PROGRESS, *folder.glob(f"{CHECKPOINT_PREFIX}*")):
            leftover.unlink(missing_ok=True)

    def mark_failed(self, job_id: str, state: str, reason: str) -> None:
        """Record why a job did not finish: state is failed, diverged or skipped."""
        write_json(self.job_folder(job_id) / FAILED, {"state": state, "reason": reason})

    def clear_failure(self, job_id: str) -> None:
        """Forget an earlier failure, an invalid DONE and half-written files before a new attempt; the lock must be held."""
        folder = self.job_folder(job_id)
        outside = (f".{SPEC}.", f".{FAILED}.")  # another command may be writing these without the lock
        killed = [path for path in folder.glob(f".*{UNFINISHED}") if not path.name.startswith(outside)]
        for path in (folder / FAILED, folder / DONE, *killed):
            path.unlink(missing_ok=True)

    def remove(self, job_id: str) -> None:
        """Delete a job's folder."""
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)

    def delete(self, path: Path) -> None:
        """Delete a folder inside the run folder; anything else is refused."""
        if self.root not in path.resolve().parents:
            raise ConfigError(f"{path} is not inside {self.root}", "Delete it by hand if you mean it.")
        shutil.rmtree(path, ignore_errors=True)

    # --- locks --------------------------------------------------------------------------------------------------------
    def holder(self, job_id: str) -> str | None:
        """Name the live holder of a job's lock, or None where it is free or its holder is gone."""
        path = self.job_folder(job_id) / LOCK
        try:
            age = time.time() - path.stat().st_mtime
            content = json.loads(path.read_text())
        except OSError:
            return None
        except ValueError:  # created, and not written yet
            return "a process that is just starting" if age <= LEASE_SECONDS else None
        if age > LEASE_SECONDS or (content.get("host") == socket.gethostname() and not _alive(int(content.get("pid", -1)))):
            return None
        return f"process {content.get('pid')} on {content.get('host')}"

    def break_lock(self, job_id: str) -> None:
        """Take away the lock of a job whose holder is known, from elsewhere, to have ended."""
        (self.job_folder(job_id) / LOCK).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, job_id: str) -> Iterator[bool]:
        """Hold a job's lock, touched by a heartbeat; yields False at once where somebody alive holds it."""
        path = self.job_folder(job_id) / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        if not self._acquire(job_id, path, token):
            yield False
            return
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError):
                    os.utime(path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield True
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["token"] == token:  # else it was taken over while this process was stopped
                    path.unlink()

    def _acquire(self, job_id: str, path: Path, token: str) -> bool:
        """Create the lock file, taking over one whose holder is gone."""
        content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": token})
        try:
            with _guard(path.with_name(f".{LOCK}.guard")):
                if self.holder(job_id) is not None:
                    return False
                path.unlink(missing_ok=True)
                with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "w") as file:
                    file.write(content)
        except FileExistsError:  # where the guard cannot work, the other one was faster
            return False
        except OSError as error:
            raise _write_error(path, error) from error
        return True

    def record_attempt(self, job_id: str, entry: Mapping[str, Any]) -> None:
        """Append one line about an attempt: when, where, how it ended."""
        self._append(job_id, ATTEMPTS, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **entry}))

    def log(self, job_id: str, text: str) -> None:
        """Append a line to a job's log."""
        self._append(job_id, LOG, f"{time.strftime('%H:%M:%S')} {text.rstrip()}")

    def _append(self, job_id: str, name: str, line: str) -> None:
        """Append a line to one of a job's files."""
        path = self.job_folder(job_id) / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise _write_error(path, error) from error

    def attempts(self, job_id: str) -> int:
        """Count how often a job was started."""
        path = self.job_folder(job_id) / ATTEMPTS
        return sum('"started"' in line for line in path.read_text().splitlines()) if path.exists() else 0

    def memo(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a small derived value under a content key, computing it where nobody has yet; races give equal values."""
        path = self.root / "memo" / f"{name}.json"
        if path.exists():
            with contextlib.suppress(ArtifactError):
                return read_json(path)
        value = make()
        write_json(path, value)
        return value

    # --- studies ------------------------------------------------------------------------------------------------------
    def studies(self) -> list[str]:
        """List study names, the most recently written last."""
        folder = self.root / "studies"
        files = sorted(folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)) if folder.is_dir() else []
        return [path.stem for path in files]

    def study(self, name: str | None = None) -> dict[str, Any]:
        """Read a study by name, or the most recent one."""
        names = self.studies()
        if not names:
            raise ConfigError(f"{self.root} holds no study yet", "Start one with `ablate run`, or give another folder with --runs.")
        if name is not None and name not in names:
            raise ConfigError(f"unknown study '{name}'", nearest(name, names))
        path = self.root / "studies" / f"{name or names[-1]}.json"
        content: dict[str, Any] = read_json(path)
        if not isinstance(content, dict) or not {"name", "cells"} <= content.keys():
            raise ArtifactError(f"{path} is not a study", "Remove it and run the same command again; finished jobs are kept.")
        return content

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Write a study; cells that an earlier command of the same name asked for stay in it, and so do their places in tables."""
        path = self.root / "studies" / f"{study['name']}.json"
        write_json(path, merged(self.study(study["name"]) if path.exists() else {}, study))

    def record_session(self, name: str, session: Mapping[str, Any]) -> None:
        """Append to a study that a command ran some of its jobs: when, where, how many, how long."""
        study = self.study(name)
        write_json(self.root / "studies" / f"{name}.json", {**study, "sessions": [*study["sessions"], dict(session)]})

    def previous_jobs(self) -> dict[tuple[str, str], str]:
        """Map (cell, role) to the job that last served it, over all studies."""
        served: dict[tuple[str, str], str] = {}
        for name in self.studies():
            with contextlib.suppress(ArtifactError):
                for cell in self.study(name)["cells"]:
                    served.update({(cell["id"], role): job for role, job in cell["jobs"].items()})
        return served

    def referred_jobs(self) -> set[str]:
        """Return every job that a cell of any study refers to; an unreadable study raises, as its jobs are not known."""
        return {job for name in self.studies() for cell in self.study(name)["cells"] for job in cell["jobs"].values()}


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Keep other processes out while a lock is looked at and taken; a file system without locks goes without."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Return a file's SHA-256, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _when(path: Path) -> str:
    """Return a file's modification time in words, or nothing."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    """Say whether a process of this machine exists and is no zombie."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a killed process that its parent has not buried runs no more
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
