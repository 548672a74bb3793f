"""The attempts of a job, remembered in its folder."""

from pathlib import Path

from vggdist.slurm import attempts


def test_attempts_are_read_back_in_their_order(tmp_path: Path) -> None:
    assert attempts.read(tmp_path, "7") == ()
    attempts.begin(tmp_path, "7", restarts=0)
    attempts.end(tmp_path, "7", exit_code=75, met_time_limit=True)
    attempts.begin(tmp_path, "7", restarts=1)
    first, second = attempts.read(tmp_path, "7")
    assert (first.restarts, first.exit_code, first.met_time_limit) == (0, 75, True)
    assert first.ended_at is not None
    assert (second.restarts, second.exit_code, second.ended_at) == (1, None, None)


def test_jobs_do_not_share_their_attempts(tmp_path: Path) -> None:
    attempts.begin(tmp_path, "7_0", restarts=0)
    assert attempts.read(tmp_path, "7_1") == ()


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    attempts.begin(tmp_path, "7", restarts=0)
    (file,) = tmp_path.iterdir()
    with file.open("a") as lines:
        lines.write('{"ended_at": "2026-')
    (only,) = attempts.read(tmp_path, "7")
    assert only.ended_at is None


def test_attempts_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    lines = (
        '{"restarts": 0, "host": "node1", "started_at": "2026-11-02T08:00:00+00:00"}',
        '{"ended_at": "2026-11-03T07:58:00+00:00", "exit_code": 75, "met_time_limit": true}',
        '{"restarts": 1, "host": "node2", "started_at": "2026-11-03T08:01:00+00:00"}',
    )
    (tmp_path / "12_0_attempts.jsonl").write_text("\n".join(lines) + "\n")
    first, second = attempts.read(tmp_path, "12_0")
    assert first == attempts.Attempt(
        restarts=0,
        host="node1",
        started_at="2026-11-02T08:00:00+00:00",
        ended_at="2026-11-03T07:58:00+00:00",
        exit_code=75,
        met_time_limit=True,
    )
    assert (second.restarts, second.host, second.ended_at) == (1, "node2", None)
