"""Find out before anything is submitted whether SLURM could ever start it. Light."""

from __future__ import annotations

from ablation.launch.resources import ResourceFile, minutes, sbatch_options
from ablation.launch.slurm_state import SlurmError, command


def setting(name: str) -> str:
    """Read one value of SLURM's configuration."""
    for line in command("scontrol", "show", "config").splitlines():
        left, _, right = line.partition("=")
        if left.strip() == name:
            return right.strip()
    return ""


def check_requests(resources: ResourceFile, kinds: set[str]) -> None:
    """Let SLURM try every kind's request without submitting; raises with its own words where it could never start."""
    partitions = _partitions()
    tried: dict[str, str] = {}
    for kind in sorted(kinds):
        wanted = resources.kinds[kind]
        options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in sbatch_options(wanted).items()]
        if str(options) in tried:
            continue
        tried[str(options)] = kind
        try:
            command("sbatch", "--test-only", *options, "--wrap=true")
        except SlurmError as error:
            raise SlurmError(f"{kind} jobs: {error.problem}", "Mend the resources (--resources, --resource KIND.FIELD=VALUE).") from None
        name = wanted.partition or partitions["default"].get("PartitionName", "")
        limit = partitions.get(name, {}).get("MaxTime", "UNLIMITED")
        if limit not in ("UNLIMITED", "") and minutes(limit) < wanted.time:
            raise SlurmError(
                f"{kind} jobs: PartitionTimeLimit: {wanted.time} minutes are more than partition {name} allows (MaxTime={limit})",
                f"Use --resource {kind}.time=... or another partition.",
            )


def _partitions() -> dict[str, dict[str, str]]:
    """Read every partition's limits; the default one is there under "default" as well."""
    found: dict[str, dict[str, str]] = {"default": {}}
    for line in command("scontrol", "--oneliner", "show", "partition").splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        found[fields.get("PartitionName", "")] = fields
        if fields.get("Default") == "YES":
            found["default"] = fields
    return found
