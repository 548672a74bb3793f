"""`vggdist report`: the paper's tables beside ours, exact, and honest about what is missing."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from xml.etree import ElementTree
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from tests import processes
from tests.conftest import MakeTree
from tests.evaluation.stored_posteriors import naive_errors, random_posteriors, store
from vggdist.artifacts.posteriors import Posteriors, load_posteriors
from vggdist.data.dataset import open_split
from vggdist.errors import VggdistError, WeightsError
from vggdist.evaluation.contact_sheet import CELL, MARGIN
from vggdist.reports import paper
from vggdist.reports.page import write_report
from vggdist.reports.report import Report, find_posteriors, make_report
from vggdist.reports.tables import render_report, report_tables, signed_percent

S256, S384, JITTERED = (256, 256), (384, 384), (256, 512)

PRINTED = {
    3: """A 256 256 29.6 10.4
A-LRN 256 256 29.7 10.5
B 256 256 28.7 9.9
C 256 256 28.1 9.4
C 384 384 28.1 9.3
C [256;512] 384 27.3 8.8
D 256 256 27.0 8.8
D 384 384 26.8 8.7
D [256;512] 384 25.6 8.1
E 256 256 27.3 9.0
E 384 384 26.9 8.7
E [256;512] 384 25.5 8.0""",
    4: """B 256 224,256,288 28.2 9.6
C 256 224,256,288 27.7 9.2
C 384 352,384,416 27.8 9.2
C [256;512] 256,384,512 26.3 8.2
D 256 224,256,288 26.6 8.6
D 384 352,384,416 26.5 8.6
D [256;512] 256,384,512 24.8 7.5
E 256 224,256,288 26.9 8.7
E 384 352,384,416 26.7 8.6
E [256;512] 256,384,512 24.8 7.5""",
    5: """D dense 24.8 7.5
D multi-crop 24.6 7.5
D multi-crop & dense 24.4 7.2
E dense 24.8 7.5
E multi-crop 24.6 7.4
E multi-crop & dense 24.4 7.1""",
}
"""The rows as the paper prints them; of Tables 6 and 7 only the errors, below."""
PRINTED_ERRORS = {
    6: ["24.7 7.5 7.3", "24.0 7.1 7.0", "23.9 7.2 –", "23.7 6.8 6.8"],
    7: [
        *("23.7 6.8 6.8", "24.4 7.1 7.0", "24.7 7.5 7.3", "– 7.9 7.9", "– 6.7 6.7", "– – 8.1"),
        *("27.9 9.1 9.1", "– – 11.7", "– – 12.5", "36.0 14.7 14.8", "37.5 16.0 16.1"),
        *("34.0 13.2 13.6", "35.7 14.2 –", "38.1 16.4 16.4", "40.7 18.2 –"),
    ],
}


def cells() -> dict[tuple[str, tuple[int, int], str, int], None]:
    """Network, S, protocol and Q of every file that the paper's tables are made of."""
    return {
        (tested.configuration, tested.train_scale, protocol, scale): None
        for table in paper.TABLES
        for row in table.rows
        for tested in row.networks
        for protocol in row.protocols
        for scale in tested.scales
    }


def posteriors_of(
    network: str, scale: tuple[int, int], protocol: str, q: int, /, **other: object
) -> Posteriors:
    fields = {
        "seed": crc32(repr((network, scale, protocol, q)).encode()),
        "network": network,
        "train_scale": scale,
        "weights": f"{network}{scale}".encode().hex().ljust(64, "0"),
        "protocol": protocol,
        "scale": q,
        "spatial_average": "logits" if protocol == "dense" else "",
    }
    return random_posteriors(**{**fields, **other})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for every cell of the paper."""
    folder = tmp_path_factory.mktemp("everything")
    store(
        folder,
        [
            posteriors_of(*cell, seed=number, dtype=np.float16)
            for number, cell in enumerate(cells())
        ],
    )
    return folder


@pytest.fixture(scope="module")
def complete(everything: Path) -> Report:
    """The report on all of them."""
    return make_report(find_posteriors([everything]))


def report_on(folder: Path, *given: Posteriors) -> Report:
    """The report on files `0.npz`, `1.npz` ... in a folder."""
    return make_report(store(folder, given))


def errors_of_mean(several: Sequence[Posteriors]) -> tuple[float, float]:
    """Top-1 and top-5 error of the mean, counted in the simplest way."""
    return naive_errors([posteriors.values for posteriors in several], several[0].labels)


def rows_of(report: Report, number: int) -> list[dict[str, object]]:
    tables = report.to_dict()["tables"]
    assert isinstance(tables, dict)
    return list(tables[str(number)])


def shown(report: Report, number: int) -> list[tuple[str, ...]]:
    (table,) = (t for t in report_tables(report) if t.title.startswith(f"Table {number}"))
    return list(table.rows)


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_the_papers_numbers_are_those_that_it_prints(number: int, complete: Report) -> None:
    rows = shown(complete, number)
    if number in PRINTED:
        heads = 3 if number < 5 else 2
        found = [" ".join((*row[:heads], row[heads], row[heads + 3])) for row in rows]
        assert found == PRINTED[number].splitlines()
    else:
        assert [f"{row[1]} {row[4]} {row[7]}" for row in rows] == PRINTED_ERRORS[number]


def test_every_row_of_the_paper_is_the_mean_of_its_files(
    everything: Path, complete: Report
) -> None:
    stored = [load_posteriors(path) for path in find_posteriors([everything])]
    by_cell = {
        (source.network, source.train_scale, source.protocol, source.scale): posteriors
        for posteriors in stored
        for source in [posteriors.source]
    }
    for table in paper.TABLES:
        rows = rows_of(complete, table.number)
        for row, ours in zip(table.rows, rows, strict=True):
            values = [
                by_cell[tested.configuration, tested.train_scale, protocol, scale].values
                for tested in row.networks
                for protocol in row.protocols
                for scale in tested.scales
            ]
            if not values:
                assert (ours["top1_error"], ours["files"]) == (None, [])
                continue
            top1, top5 = naive_errors(values, stored[0].labels)
            assert (ours["top1_error"], ours["top5_error"]) == (top1, top5)
            assert ours["num_images"] == 23
            assert len(ours["files"]) == len(values)  # type: ignore[arg-type]
            assert ours["top1_difference"] == pytest.approx(top1 - row.top1_error)
    top1, top5 = errors_of_mean(stored)
    assert complete.to_dict().items() >= (
        {"num_images": 23, "top1_error": top1, "top5_error": top5}.items()
    )


def test_the_order_of_the_files_does_not_matter(everything: Path, complete: Report) -> None:
    reverse = make_report(find_posteriors([everything])[::-1])
    for number in range(3, 8):
        assert shown(reverse, number) == shown(complete, number)
    assert reverse.fused == complete.fused


def test_a_cell_without_a_run_says_so(tmp_path: Path) -> None:
    report = report_on(
        tmp_path,
        posteriors_of("D", JITTERED, "dense", 256),
        posteriors_of("D", JITTERED, "dense", 384),
        posteriors_of("E", S256, "dense", 256),
    )
    for row in shown(report, 3):
        ours = row[4], row[7]
        if row[:2] in (("D", "[256;512]"), ("E", "256")):
            assert "no run" not in ours
        else:
            assert ours == ("no run", "no run")
    text = render_report(report)
    assert "D [256;512]: no run of dense at Q 512" in text
    assert "D [256;512]: no run of multi-crop at Q 256, multi-crop at Q 384" in text
    assert "E 256: no run of dense at Q 224, dense at Q 288" in text
    assert "E 256: no run;" not in text
    assert rows_of(report, 4)[0]["problem"] == ""


def test_several_trainings_are_never_mixed(tmp_path: Path) -> None:
    given = [
        posteriors_of(network, JITTERED, "dense", q, weights=weights * 32, seed=seed)
        for seed, ((network, weights), q) in enumerate(
            product((("D", "a1"), ("D", "b2"), ("E", "e5")), (256, 384, 512))
        )
    ]
    report = report_on(tmp_path, *given)
    lines = [line for line in rows_of(report, 4) if line["run"]]
    assert [line["run"] for line in lines] == ["a1a1a1a1", "b2b2b2b2"]
    assert [line["files"] for line in lines] == [
        ["0.npz", "1.npz", "2.npz"],
        ["3.npz", "4.npz", "5.npz"],
    ]
    for line, members in zip(lines, (given[:3], given[3:6]), strict=True):
        expected = errors_of_mean(members)
        assert (line["top1_error"], line["top5_error"]) == expected
    fusion = rows_of(report, 6)[1]
    assert fusion["top1_error"] is None
    assert fusion["problem"] == (
        "D [256;512]: several runs fit (a1a1a1a1, b2b2b2b2); give one of them"
    )


def test_one_network_computed_in_two_ways_has_a_line_for_each(tmp_path: Path) -> None:
    given = [
        posteriors_of("D", S256, "dense", 256, spatial_average=average, precision=precision)
        for average, precision in (("logits", "fp16"), ("posteriors", "fp16"))
    ]
    runs = [line["run"] for line in rows_of(report_on(tmp_path, *given), 3) if line["run"]]
    assert [run.partition(" ")[2] for run in runs] == [  # type: ignore[attr-defined]
        "(dense in fp16, logits averaged)",
        "(dense in fp16, posteriors averaged)",
    ]
    mixed = [
        posteriors_of("D", S256, "dense", q, precision=precision)
        for q, precision in ((224, "fp16"), (256, "fp32"), (288, "fp16"))
    ]
    assert "D 256: its files do not belong together" in render_report(
        report_on(tmp_path / "mixed", *mixed)
    )


@pytest.mark.parametrize(
    "other",
    [
        {"network": "D-BN"},
        {"network": "custom"},
        {"flip": False},
        {"protocol": "center-crop"},
        {"train_scale": None},
        {"train_scale": (224, 224)},
        {"scale": 320},
    ],
)
def test_what_the_paper_does_not_have_stands_among_all_files_only(
    other: dict[str, object], tmp_path: Path
) -> None:
    given = posteriors_of("D", S256, "dense", 256, **other)
    report = report_on(tmp_path, given)
    for number in range(3, 8):
        assert all(line["top1_error"] is None for line in rows_of(report, number))
    (file,) = report.to_dict()["files"]  # type: ignore[misc]
    assert (file["top1_error"], file["top5_error"]) == errors_of_mean([given])
    assert (file["network"], file["flip"]) == (given.source.network, given.source.flip)
    assert report.fused.top1_error == file["top1_error"]


def test_dense_and_multi_crop_are_averaged_beyond_the_papers_rows_too(tmp_path: Path) -> None:
    given = [
        posteriors_of("tiny", (32, 40), protocol, q, num_classes=7, seed=seed)
        for seed, (protocol, q) in enumerate(
            [("dense", 36), ("dense", 40), ("multi-crop", 36), ("multi-crop", 40), ("dense", 44)]
        )
    ]
    report = report_on(tmp_path, *given)
    found = {
        " & ".join(average["protocols"]): average
        for average in report.to_dict()["averages"]  # type: ignore[attr-defined]
    }
    members = {"dense": (0, 1, 4), "multi-crop": (2, 3), "multi-crop & dense": (0, 1, 2, 3)}
    assert found.keys() == members.keys()
    for name, numbers in members.items():
        expected = errors_of_mean([given[number] for number in numbers])
        assert (found[name]["top1_error"], found[name]["top5_error"]) == expected
        assert found[name]["files"] == [f"{number}.npz" for number in numbers]


def test_a_file_that_repeats_another_counts_in_the_fusion_only(tmp_path: Path) -> None:
    given = [posteriors_of("D", S256, "dense", 256, seed=seed) for seed in (1, 2)]
    report = report_on(tmp_path, *given)
    (line,) = (line for line in rows_of(report, 3) if line["files"])
    assert line["files"] == ["0.npz"]
    assert any("1.npz repeats 0.npz" in note for note in report.notes)
    expected = errors_of_mean(given)
    assert (report.fused.top1_error, report.fused.top5_error) == expected


def test_a_file_given_twice_counts_once(tmp_path: Path) -> None:
    paths = store(tmp_path / "run" / "posteriors", [random_posteriors(0), random_posteriors(1)])
    np.savez(tmp_path / "run" / "features.npz", X=np.zeros((2, 2)))
    found = find_posteriors([paths[1], tmp_path / "run", tmp_path / "run" / ".." / "run"])
    assert found == [paths[1], paths[0]]


def test_a_folder_without_posteriors_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no posteriors file"):
        find_posteriors([tmp_path])
    (path,) = store(tmp_path, [random_posteriors()])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"0\.npz cannot be read"):
        find_posteriors([tmp_path])


def test_files_of_other_images_are_refused_by_name(tmp_path: Path) -> None:
    paths = store(tmp_path, [random_posteriors(), random_posteriors(images="2b" * 32)])
    with pytest.raises(WeightsError, match=rf"{paths[0]} and {paths[1]} are of different images"):
        make_report(paths)


def test_differences_are_signed_and_nothing_has_no_sign() -> None:
    texts = [signed_percent(value) for value in (0.0104, -0.2, 0.00001, -0.00001, 0.0, None)]
    assert texts == ["+1.04", "-20.00", "0.00", "0.00", "0.00", "–"]


class Page(HTMLParser):
    """Collects tags, text, and the cells of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Iterable[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def test_the_page_holds_the_tables_and_needs_nothing_else(complete: Report, tmp_path: Path) -> None:
    path = write_report(complete, tmp_path / "new" / "report")
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.links
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert page.tags.count("svg") == 2
    tables = report_tables(complete)
    assert len(page.tables) == len(tables)
    for rows, table in zip(page.tables, tables, strict=True):
        assert [row for row in rows if len(row) == len(table.columns)][-len(table.rows) :] == [
            list(row) for row in table.rows
        ]


def test_the_markdown_holds_the_tables_and_its_pictures(complete: Report, tmp_path: Path) -> None:
    text = write_report(complete, tmp_path).with_suffix(".md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        ElementTree.parse(tmp_path / name)
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    for block, table in zip(blocks, report_tables(complete), strict=True):
        lines = [
            [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")]
            for line in block.splitlines()
        ]
        assert {len(line) for line in lines} == {len(table.columns)}
        assert lines[2:] == [list(row) for row in table.rows]


def test_names_of_files_and_networks_are_text_everywhere(tmp_path: Path) -> None:
    name, network = "a|b<script>alert(1)<.npz", "<img src=x>[red]&amp;`*"
    (path,) = store(tmp_path, [random_posteriors(network=network, num_classes=7)])
    odd = path.rename(tmp_path / name)
    unprintable = path.with_name("\udcff.npz")
    store(tmp_path, [random_posteriors(1, network=network, num_classes=7)])[0].rename(unprintable)
    report = make_report([odd, unprintable])
    page = Page(write_report(report, tmp_path).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert name in page.text
    assert network in page.text
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<" not in text.replace("\\<", "")
    assert r"a\|b\<script" in text
    assert network in render_report(report)
    assert "\\xff.npz" in render_report(report)


@pytest.mark.parametrize("kind", ["top1_error", "top5_error"])
def test_the_picture_has_every_file_and_the_papers_points_at_their_height(
    kind: str, complete: Report, tmp_path: Path
) -> None:
    write_report(complete, tmp_path)
    root = ElementTree.parse(tmp_path / f"{kind}.svg").getroot()
    points = []
    for mark in root.iter():
        title = mark.find("{*}title")
        if title is not None and title.text is not None and title.text.endswith(" %"):
            (point,) = mark.iter("{http://www.w3.org/2000/svg}use")
            points.append((float(title.text.split()[-2]), float(point.get("y", "")), title.text))
    papers = [title for *_, title in points if title.startswith("paper")]
    assert len(papers) == 12 + 10
    assert sum(", Q 384: " in title for *_, title in points) >= 10
    assert len(points) - len(papers) == len(complete.names) + sum(
        complete.protocols(files) == ("dense",) for files in complete.averages
    )
    errors, heights = np.array([point[:2] for point in points]).T
    slope, offset = np.polyfit(errors, heights, 1)
    assert slope < 0
    # The titles have two decimals of the error.
    assert np.abs(slope * errors + offset - heights).max() < 0.006 * -slope


def test_only_differences_from_the_papers_errors_are_judged(tmp_path: Path) -> None:
    report = report_on(tmp_path, posteriors_of("D", S256, "dense", 256))
    assert re.search('class="number (less|more)', _read(write_report(report, tmp_path)))


@pytest.fixture
def few_classes(tmp_path: Path) -> tuple[Report, list[Posteriors]]:
    """The report on two files of 200 images in 7 classes, and what is in them."""
    given = [random_posteriors(seed, 200, 7, scale=q) for seed, q in enumerate((256, 384))]
    return report_on(tmp_path, *given), given


def test_a_report_of_other_classes_has_none_of_the_papers_rows_and_points(
    few_classes: tuple[Report, list[Posteriors]], tmp_path: Path
) -> None:
    report, _ = few_classes
    page = _read(write_report(report, tmp_path))
    assert "paper" not in re.sub("<style.*?</style>", "", _read(tmp_path / "top1_error.svg"))
    assert not re.search('class="[^"]*(less|more)', page)
    for text in (page, render_report(report), _read(tmp_path / "report.md")):
        assert "Table 3" not in text
        assert "no run" not in text
        assert "paper" not in re.sub("<style.*?</style>", "", text)
    assert report.to_dict()["tables"] == {}


def test_a_report_of_other_classes_tells_which_classes_and_images_fail(
    few_classes: tuple[Report, list[Posteriors]],
) -> None:
    report, given = few_classes
    mean = np.mean([posteriors.values.astype(np.float64) for posteriors in given], axis=0)
    labels, predicted = given[0].labels, mean.argmax(axis=1)
    tables = {table.title.partition(",")[0]: table.rows for table in report_tables(report)}
    by_class = {row[0]: row[1:] for row in tables["Errors by class"]}
    for label in range(7):
        own = labels == label
        wrong = np.count_nonzero(predicted[own] != label)
        taken = np.bincount(predicted[own & (predicted != labels)], minlength=7)
        images, num_wrong, error, most = by_class[f"c{label}"]
        assert (int(images), int(num_wrong)) == (own.sum(), wrong)
        assert float(error) == pytest.approx(100 * wrong / own.sum(), abs=0.005)
        assert most == f"c{taken.argmax()} ({taken.max()})"
    errors = [float(row[3]) for row in tables["Errors by class"]]
    assert errors == sorted(errors, reverse=True)
    confidences = np.where(predicted == labels, -1, mean.max(axis=1))
    worst = np.argsort(-confidences)[:32]
    assert [row[0] for row in tables["Worst mistakes"]] == [given[0].names[i] for i in worst]
    assert [row[1:3] for row in tables["Worst mistakes"]] == [
        (f"c{labels[i]}", f"c{predicted[i]}") for i in worst
    ]
    (_, _, number) = tables["Most often taken for another"][0]
    matrix = np.bincount(labels * 7 + predicted, minlength=49).reshape(7, 7)
    np.fill_diagonal(matrix, 0)
    assert int(number) == matrix.max()
    assert "12 more are in the files that --out writes" in render_report(report)


def test_of_five_classes_no_top5_error_is_told(tmp_path: Path) -> None:
    report = report_on(tmp_path, random_posteriors(0, 50, 5))
    write_report(report, tmp_path)
    assert "top-5" not in render_report(report) + _read(tmp_path / "report.html")
    assert not (tmp_path / "top5_error.svg").exists()


def test_the_worst_mistakes_are_shown_where_their_images_are_found(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    """Without --data, those of the run in whose folder the files lie."""
    root = tmp_path / "data"
    counts = {"c0": 9, "c1": 5, "c2": 6}
    for split in ("train", "val"):
        make_tree(root / split, counts)
    images = open_split(root, "val")
    random = random_posteriors(0, 20, 3, images=images.digest)
    names = tuple(images.name(number) for number in range(20))
    given = replace(random, labels=images.labels, names=names)
    (tmp_path / "run" / "posteriors").mkdir(parents=True)
    report = report_on(tmp_path / "run" / "posteriors", given)
    write_report(report, tmp_path / "out")
    assert (tmp_path / "out" / "confusion.png").exists()
    assert not (tmp_path / "out" / "mistakes.png").exists()
    with pytest.raises(WeightsError, match="does not hold the images of these posteriors files"):
        write_report(report, tmp_path / "out", str(tmp_path))
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{root: {root}}}")
    page = Page(_read(write_report(report, tmp_path / "out")))
    assert [link.partition(",")[0] for link in page.links] == ["data:image/png;base64"] * 2
    with Image.open(tmp_path / "out" / "mistakes.png") as sheet:
        assert sheet.width == min(8, len(report.mistakes)) * (CELL + 2 * MARGIN)
    assert "](mistakes.png)" in _read(tmp_path / "out" / "report.md")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\n", " ")


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    paths = store(tmp_path, [random_posteriors(num_classes=7)])
    with pytest.raises(VggdistError, match="report cannot be written to"):
        write_report(make_report(paths), paths[0] / "below")


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    return processes.run(sys.executable, "-m", "vggdist.cli", "report", *map(str, words))


@pytest.mark.slow
def test_the_command_prints_writes_and_refuses(tmp_path: Path) -> None:
    posteriors = [posteriors_of("D", JITTERED, "dense", q) for q in (256, 384)]
    paths = store(tmp_path / "files", posteriors)
    done = _run(tmp_path / "files", "--out", tmp_path / "out", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    for number in range(3, 8):
        assert f"Table {number}: " in done.stdout
    top1, top5 = errors_of_mean(posteriors)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert (stored["num_images"], stored["top1_error"], stored["top5_error"]) == (23, top1, top5)
    assert f"{100 * top1:.2f}" in done.stdout
    assert str(tmp_path / "out" / "report.html") in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    paths[0].write_bytes(paths[0].read_bytes()[:500])
    failed = _run(*paths)
    assert failed.returncode == 5
    assert failed.stderr.startswith(f"error: {paths[0]} cannot be read as a posteriors file")
    assert "Traceback" not in failed.stderr
