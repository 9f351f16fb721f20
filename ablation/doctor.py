"""Look at the installation and the machine, and say what would get in the way of a run."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from ablation.errors import AblationError

PACKAGES = ("torch", "torchvision", "timm", "diffusers", "safetensors", "submitit", "pandas", "matplotlib", "torch-fidelity")
LEAST_FREE_GIB = 5
Check = dict[str, str]


def examine(runs: Path) -> list[Check]:
    """Return one entry per check: what was looked at, its state (ok, note or bad), and what was found."""
    checks = [_python(), *_packages(), _command()]
    if all(check["state"] != "bad" for check in checks):
        checks += [_torchvision(), _compute(), *_stages(), _embedded_data(), _perceptual()]
    return [*checks, _disk(runs), _slurm()]


def _check(what: str, state: str, found: str) -> Check:
    return {"what": what, "state": state, "found": found}


def _python() -> Check:
    return _check("python", "ok" if sys.version_info >= (3, 11) else "bad", sys.version.split()[0])


def _packages() -> list[Check]:
    """Report versions of the packages that results depend on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(_check(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(_check(name, "bad", "not installed; run `make install`"))
    return found


def _command() -> Check:
    """Say whether another program named ablate hides ours."""
    first = shutil.which("ablate")
    own = Path(sys.executable).with_name("ablate")
    if first is None:
        return _check("command", "note", "`ablate` is not on PATH; use `python -m ablation`, or activate the environment")
    if Path(first).resolve() != own.resolve():
        return _check("command", "note", f"`ablate` on PATH is {first}, another program; use `python -m ablation`")
    return _check("command", "ok", first)


def _torchvision() -> Check:
    """Say whether torchvision's compiled operators had to be declared."""
    from ablation import torchvision_compat

    if torchvision_compat.NEEDED:
        return _check(
            "torchvision operators",
            "note",
            "its compiled part does not fit this torch; nms was declared so that it imports (not used here)",
        )
    return _check("torchvision operators", "ok", "loaded")


def _compute() -> Check:
    """Report device, threads and which float32 product is used."""
    from ablation.compute import choose_device, enable_fast_products

    products = enable_fast_products()
    return _check("compute", "ok", f"{choose_device()}, {len(os.sched_getaffinity(0))} CPU cores, {products}")


def _stages() -> list[Check]:
    """Report how many stages were found, and every broken source."""
    from ablation.discover import discover

    try:
        tree = discover()
    except AblationError as error:
        return [_check("stages", "bad", str(error))]
    broken = [_check("stage source", "note", f"{fault.source} is broken: {fault.problem}") for fault in tree.broken]
    return [_check("stages", "ok", f"{len(tree.stages)} found"), *broken]


def _embedded_data() -> Check:
    """Draw a few of the embedded scenes."""
    from ablation.config import DataConfig
    from ablation.data.images import open_images

    try:
        images = open_images(DataConfig(image_size=32, train_images=32, test_images=32), "train")
    except AblationError as error:
        return _check("embedded images", "bad", str(error))
    return _check("embedded images", "ok", f"{images.name}, {images.num_classes} classes")


def _perceptual() -> Check:
    """Load the network that the smoke scale uses for the perceptual loss and the Frechet distance."""
    from ablation.efficientnet import load_efficientnet_lite0

    try:
        load_efficientnet_lite0(None)
    except AblationError as error:
        return _check("EfficientNet-Lite0 weights", "bad", str(error))
    return _check("EfficientNet-Lite0 weights", "ok", "loaded from their package")


def _disk(runs: Path) -> Check:
    """Report the free space where runs are kept, and whether it can be written to."""
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return _check("run folder", "bad", f"{folder} is not writable")
    return _check("run folder", "ok" if free >= LEAST_FREE_GIB else "note", f"{free:.0f} GiB free at {folder}")


def _slurm() -> Check:
    """Say whether SLURM's commands are here."""
    return _check("SLURM", "ok", shutil.which("sbatch") or "no sbatch here: jobs run on this machine")
