"""Names as people see them."""

import pytest

from vggdist.artifacts.names import (
    explain_twins,
    has_control_characters,
    listed,
    printable,
    render_labels,
    spelled,
)

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "'cat'"),
        ("cat ", "'cat '"),
        ("a\nb", r"'a\nb'"),
        (COMPOSED, f"'{COMPOSED}'"),
        (DECOMPOSED, r"'cafe\u0301'"),
        ("\u200bcat", r"'\u200bcat'"),
        ("क्षि", "'क्षि'"),
        ("日本", "'日本'"),
    ],
)
def test_quotes_show_what_a_terminal_hides_and_leave_other_scripts_alone(name, expected):
    assert spelled(name) == expected


def test_what_is_printed_stays_on_one_line_and_is_text():
    assert printable("a\nb\tc \udcff ü") == r"a\nb\tc \xff ü"
    printable("\ud800").encode()


def test_long_lists_are_cut_short():
    assert listed(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_control_characters_are_those_that_break_a_line_or_move_the_cursor():
    assert all(map(has_control_characters, ("a\nb", "a\x1b[2J", "a\x7f", "\u2028")))
    assert not any(
        map(has_control_characters, ("a b", DECOMPOSED, "क्षि", "\udcff", "نمی\u200cشود"))
    )


def test_names_that_look_the_same_are_said_to_be_equal_after_normalization():
    assert explain_twins(["a", "b ", "b"]) == ""
    said = explain_twins([COMPOSED, "dog", DECOMPOSED])
    assert rf"'cafe\u0301' and '{COMPOSED}' are equal after Unicode normalization" in said


def test_labels_are_told_in_one_line_however_many_there_are(tmp_path):
    assert render_labels(("cat", "dog"), tmp_path).endswith(": 0 'cat', 1 'dog'")
    many = render_labels(tuple(map(str, range(1000))), tmp_path / "classes.txt")
    assert many.endswith(
        f": 0 '0', 1 '1', ..., 999 '999'; all of them, a line each: {tmp_path}/classes.txt"
    )
