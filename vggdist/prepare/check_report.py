"""What a check found, for a person at a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vggdist.artifacts.names import printable
from vggdist.artifacts.paths import quote
from vggdist.data.manifest_file import Unusable
from vggdist.prepare.findings import CROP_SIZE, TINY_CLASS, CheckResult, Spread

_MOST_FILES = 20  # quarantined files that are spelled out
_MOST_CASES = 5  # that a warning spells out


def render_check(result: CheckResult, whole_list: Path | None) -> str:
    """A few tables, then warnings, then damaged and quarantined files by reason.

    Args:
        result: of `check`.
        whole_list: where all such files are listed; none: nowhere.
    """
    lines = [*_counts(result), "", *_contents(result)]
    if warnings := list(_warnings(result)):
        lines += ["", "Warnings", *(f"  {warning}" for warning in warnings)]
    if result.damaged:
        title = f"Readable, damaged, used all the same: {len(result.damaged)}"
        lines += ["", title, *_by_reason(result.damaged, whole_list)]
    if result.quarantine:
        title = f"Quarantine, files that training cannot use: {len(result.quarantine)}"
        lines += ["", title, *_by_reason(result.quarantine, whole_list)]
    return "\n".join(printable(line) for line in lines) + "\n"


def _counts(result: CheckResult) -> Iterator[str]:
    yield f"{quote(result.data)}: {result.accepted} of {_total(result)} images can be used"
    yield ""
    yield f"  {'':<8}{'classes':>9}{'images':>11}{'accepted':>11}"
    for split, classes in result.splits.items():
        images = sum(count.images for count in classes.values())
        accepted = sum(count.accepted for count in classes.values())
        yield f"  {split or 'all':<8}{len(classes):>9}{images:>11}{accepted:>11}"


def _contents(result: CheckResult) -> Iterator[str]:
    yield f"  formats        {_listed_counts(result.formats)}"
    yield f"  modes          {_listed_counts(result.modes)}"
    yield f"  shorter side   {_spread(result.shorter_side)} pixels"
    yield f"  file size      {_spread(result.num_bytes)} bytes"
    for name, one in (("smallest", result.smallest), ("largest", result.largest)):
        if one is not None:
            yield f"  {name:<14} {one.width} x {one.height} pixels, {one.file}"
    yield f"  below {CROP_SIZE}      {result.num_below_crop_size} images (shorter side, pixels)"
    yield f"  copies         {result.duplicates.num_same_label} in the same class and split"
    for number, (reason, kinds) in enumerate(result.left_out.items()):
        yield f"  {'' if number else 'not read':<14} {reason}: {_listed_counts(kinds)}"


def _warnings(result: CheckResult) -> Iterator[str]:
    across, conflicting = result.duplicates.across_splits, result.duplicates.different_labels
    tiny = [f"{name}: {count}" for name, count in result.tiny_classes.items()]
    yield from _warning(
        "Images in train/ and in val/, so that the validation error looks better than it is",
        [_group(group) for group in across],
    )
    yield from _warning(
        "Images in several classes of one split", [_group(group) for group in conflicting]
    )
    yield from _warning(f"Classes with fewer than {TINY_CLASS} training images", tiny)
    yield from _warning("Files that have changed since they were last looked at", result.changed)


def _warning(what: str, cases: Sequence[str]) -> Iterator[str]:
    if cases:
        yield f"{what}: {len(cases)}"
        yield from (f"  {case}" for case in cases[:_MOST_CASES])
        if (more := len(cases) - _MOST_CASES) > 0:
            yield f"  and {more} more"


def _group(files: Sequence[str]) -> str:
    # The first and the last are of different splits, or classes.
    return " = ".join(
        files if len(files) < 4 else [files[0], f"({len(files) - 2} more)", files[-1]]
    )


def _by_reason(listed: Sequence[Unusable], whole_list: Path | None) -> Iterator[str]:
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for one in listed:
        by_reason[one.reason].append(one.file)
    left = _MOST_FILES
    for reason, files in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        if left > 0:
            yield f"  {len(files)}: {reason}"
            yield from (f"    {file}" for file in files[:left])
        left -= len(files)
    if left < 0:
        where = f"in {quote(whole_list)}" if whole_list else "what --json FILE writes"
        yield f"  and {-left} more; the whole list is {where}"


def _total(result: CheckResult) -> int:
    return result.accepted + len(result.quarantine)


def _spread(spread: Spread) -> str:
    return f"{spread.min} to {spread.max}, median {spread.median}"


def _listed_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'no suffix'} {count}" for name, count in counts.items()) or "none"
