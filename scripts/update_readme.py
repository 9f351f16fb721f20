"""Write the committed reports from results/results.jsonl, and their tables into README.md between its markers.

Run as `python scripts/update_readme.py`, after copying a study's results.jsonl, provenance.json and pictures/ to results/.
With --check nothing is written; the exit code says whether README.md and the reports are what the results give.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ablation.report import all_tables
from ablation.report.build import footer_of
from ablation.report.formats import to_markdown
from ablation.results_folder import read_source, report_of

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- generated: smoke -->\n", "<!-- end -->\n"


def generated() -> tuple[str, dict[str, bytes]]:
    """Return README.md with its tables, and every report file by name."""
    source = read_source(ROOT / "results" / "results.jsonl")
    records, document = source.records, source.provenance
    footer = footer_of(records, document)
    tables = [table for table in all_tables(records, footer) if table.number in ("1", "3")]
    shown = ["\n".join(line for line in to_markdown(table).splitlines() if line.startswith("|")) for table in tables]
    sessions = document["sessions"]
    minutes = sum(session["seconds"] for session in sessions) / 60
    words = (
        f"From `{document['command']}` on {sessions[0]['machine']}: {minutes:.1f} minutes, one seed, commit {footer['commit']}. "
        "† marks rows in which labels are used; all notes, protocols and formats are in [`reports/`](reports)."
    )
    block = "\n\n".join([*shown, "![Linear-probe accuracy along the deconstruction](reports/trajectory.png)", words])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block}\n\n{END}{after}", report_of(source)


def main() -> int:
    """Write, or with --check compare."""
    readme, files = generated()
    wanted = {ROOT / "README.md": readme.encode(), **{ROOT / "reports" / name: content for name, content in files.items()}}
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the results give", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_bytes(wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
