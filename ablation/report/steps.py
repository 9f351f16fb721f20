"""What can be said of each step of a ladder: effect, no effect, or cannot tell; and whether the paper's step has the same sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ablation.report.cells import signed
from ablation.report.images import ImageTest, compare_images
from ablation.report.intervals import Change, spread
from ablation.report.measures import change_between, measure
from ablation.report.notes import same_scale
from ablation.report.published import Entry, Published
from ablation.report.results import Record, Row
from ablation.report.significance import (
    LEVEL,
    correlation,
    equivalence_p,
    holm,
    seeds_needed,
    sign_flip_floor,
    sign_flip_p,
    student_p,
)

METRIC = "linear_probe_top1"
EFFECT, NO_EFFECT, CANNOT_TELL, WITHHELD = "effect", "no effect", "cannot tell", "withheld"


@dataclass(frozen=True)
class StepTest:
    """One difference between two rows with everything that was tested of it; family is how many were tested together."""

    name: str
    before: Row
    after: Row
    change: Change | str  # or why there is none
    differences: tuple[float, ...] = ()
    student: float | None = None
    student_holm: float | None = None
    flip: float | None = None
    equivalence: float | None = None
    equivalence_holm: float | None = None
    correlation: float | None = None
    images: ImageTest | str = ""
    margin: float = 1.0
    family: int = 1

    @property
    def floor(self) -> float | None:
        """The smallest p that the sign-flip test can reach here."""
        return sign_flip_floor(len(self.differences)) if self.differences else None

    @property
    def verdict(self) -> str:
        """One of effect, no effect, cannot tell, withheld; at 5 %, adjusted over the family."""
        if isinstance(self.change, str):
            return WITHHELD
        if self.equivalence_holm is not None and self.equivalence_holm < LEVEL:
            return NO_EFFECT
        return EFFECT if self.differs else CANNOT_TELL

    @property
    def differs(self) -> bool:
        """Whether zero is excluded, however small the difference."""
        return self.student_holm is not None and self.student_holm < LEVEL

    @cached_property
    def needed(self) -> int | None:
        """Seeds with which it could be told, at the family's strictest level; None without a spread, or for too many."""
        deviation = spread(self.differences)
        return seeds_needed(self.margin, deviation, LEVEL / self.family) if deviation else None


def step_test(name: str, before: Row, after: Row, metric: str, margin: float) -> StepTest:
    """Test one difference by itself, on common seeds; adjusting comes with the family."""
    change = change_between(before, after, metric)
    if isinstance(change, str):
        return StepTest(name, before, after, change, margin=margin, images=f"withheld: {change}")
    first, second = measure(before, metric).values, measure(after, metric).values
    old, new = ([values[seed] for seed in change.seeds] for values in (first, second))
    differences = tuple(b - a for a, b in zip(old, new, strict=True))
    # Differences that do not vary at all are a whim of rounding to whole images, not certainty.
    varied = bool(spread(differences))
    student = student_p(differences) if varied else None
    equal = equivalence_p(differences, margin) if varied else None
    return StepTest(
        name, before, after, change, differences, student, student, sign_flip_p(differences), equal, equal, correlation(old, new),
        compare_images(before, after, change.seeds, metric), margin,
    )  # fmt: skip


def as_family(tests: Sequence[StepTest]) -> tuple[StepTest, ...]:
    """Adjust the p values of several steps by Holm's method, those of a difference and those of equivalence each as one family."""
    students = holm({test.name: test.student for test in tests if test.student is not None})
    equals = holm({test.name: test.equivalence for test in tests if test.equivalence is not None})
    size = max(1, len(students))
    return tuple(replace(test, student_holm=students.get(test.name), equivalence_holm=equals.get(test.name), family=size) for test in tests)


def ladder_tests(rows: Sequence[Row], margin: float, metric: str = METRIC) -> tuple[StepTest, ...]:
    """Test every step of a ladder as one family; rows: the ladder's, each with its parent's stage."""
    by_stage = {row.stage: row for row in rows}
    return as_family([step_test(str(row.stage), by_stage[row.parent], row, metric, margin) for row in rows if row.parent is not None])


@dataclass(frozen=True)
class PaperStep:
    """The paper's own step: its size, what sampling of its test images alone could make of it, and its entry."""

    change: float
    noise: float
    entry: Entry

    @property
    def has_sign(self) -> bool:
        """Whether the step exceeds its own noise, by more than the rounding of the two printed numbers."""
        return abs(self.change) - 10**-self.entry.decimals >= self.noise


def paper_entry(published: Published, stage: str | None) -> Entry | None:
    """Return the paper's linear-probe number of a stage: Fig. 6's, or the text's after Table 3."""
    return published.find("figure_6", stage, METRIC) or published.find("3", stage, METRIC)


def paper_step(published: Published, before: str | None, after: str | None) -> PaperStep | None:
    """Return the paper's step between two stages; None where it has no number for one of them."""
    first, second = paper_entry(published, before), paper_entry(published, after)
    if first is None or second is None or first.value is None or second.value is None:
        return None
    images = int(published.contexts[second.context].requires["protocol.test_images"])
    shares = [entry / 100 for entry in (first.value, second.value)]
    noise = 196 * math.sqrt(sum(share * (1 - share) for share in shares) / images)
    return PaperStep(round(second.value - first.value, 6), noise, second)


@dataclass(frozen=True)
class PaperVerdict:
    """Whether a step agrees with the paper's; at another scale the sign is compared all the same, and so marked."""

    word: str  # agrees, disagrees, cannot tell, not in the paper
    reason: str
    other_scale: bool

    @property
    def text(self) -> str:
        """The verdict as a table prints it."""
        said = {"agrees": "agrees in sign", "disagrees": "disagrees in sign"}.get(self.word, self.word)
        return f"{'other scale; ' if self.other_scale else ''}{said}{f': {self.reason}' if self.reason else ''}"


def against_paper(test: StepTest, paper: PaperStep | None, records: Sequence[Record], published: Published) -> PaperVerdict:
    """Compare signs where both steps have one: ours if zero is excluded after Holm, the paper's if it exceeds its own noise."""
    done = [record for row in (test.before, test.after) for record in row.records if record["state"] == "done"]
    context = published.contexts[paper.entry.context if paper else "main"]
    other = not same_scale(done, context.requires, records)
    if paper is None:
        return PaperVerdict("not in the paper", "", other and bool(done))
    if test.verdict in (WITHHELD, CANNOT_TELL):
        return PaperVerdict(CANNOT_TELL, "", other and bool(done))
    within = f"the paper's {signed(paper.change)} is within its own noise of {paper.noise:.1f}"
    if test.verdict == NO_EFFECT:
        if not paper.has_sign:
            return PaperVerdict("agrees", f"no effect in either, {within}", other)
        return PaperVerdict(CANNOT_TELL, f"no effect here, {signed(paper.change)} in the paper", other)
    assert isinstance(test.change, Change)
    if not paper.has_sign:
        return PaperVerdict(CANNOT_TELL, within, other)
    same = (test.change.mean > 0) == (paper.change > 0)
    return PaperVerdict("agrees" if same else "disagrees", "", other)


def summary(tests: Sequence[StepTest], verdicts: Sequence[PaperVerdict], papers: Sequence[PaperStep | None]) -> tuple[str, ...]:
    """List which of the paper's steps agree in sign, which do not, which cannot be told, and which have no result here."""
    known = [(test, verdict, paper) for test, verdict, paper in zip(tests, verdicts, papers, strict=True) if paper is not None]
    groups: dict[str, list[str]] = {"agree in sign": [], "disagree in sign": [], "cannot be told": [], "have no change here": []}
    words = {"agrees": "agree in sign", "disagrees": "disagree in sign", CANNOT_TELL: "cannot be told"}
    for test, verdict, paper in known:
        theirs = f"{signed(paper.change)} in the paper"
        if isinstance(test.change, Change):
            shown = f"{test.name} ({signed(test.change.mean)} here, {theirs}{_short_reason(verdict)})"
            groups[words[verdict.word]].append(shown)
        else:
            groups["have no change here"].append(f"{test.name} ({test.change}; {theirs})")
    compared = [verdict for test, verdict, _ in known if isinstance(test.change, Change)]
    scale = " (at another scale)" if compared and all(verdict.other_scale for verdict in compared) else ""
    lines = []
    for said, found in groups.items():
        where = scale if found and said != "have no change here" else ""
        lines.append(f"Of the paper's {len(known)} steps, {len(found)} {said}{where}{': ' if found else '.'}{', '.join(found)}")
    return tuple(lines[:3] + lines[3:] * bool(groups["have no change here"]))


def _short_reason(verdict: PaperVerdict) -> str:
    return "; no effect in either" if verdict.word == "agrees" and verdict.reason else ""
