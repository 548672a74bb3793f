"""Files, logs and SLURM's queue in, the state of every stage out."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest

from tests.experiments.made_experiments import begin, finish, make_experiment
from vggdist.errors import ConfigError, DistributedError
from vggdist.experiments import job_log
from vggdist.experiments.runner import problems
from vggdist.experiments.stages import JOB_FOLDER, Experiment
from vggdist.experiments.status import StageStatus, last_error, read_status
from vggdist.experiments.tables import render_status, status_to_dict
from vggdist.slurm import attempts, queue
from vggdist.slurm.queue import QueuedJob
from vggdist.slurm.submit import Layout

Queue = dict[str, QueuedJob]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return make_experiment(tmp_path)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """What SLURM has in its queue; a test fills it."""
    jobs: Queue = {}
    monkeypatch.setattr(
        queue, "job_states", lambda ids: {job: jobs[job] for job in ids if job in jobs}
    )
    return jobs


def at(experiment: Experiment, name: str) -> StageStatus:
    return read_status(experiment)[name]


def submitted(experiment: Experiment, name: str, job: str) -> Path:
    """Records a job; returns the job folder."""
    job_log.note(experiment.folder, name, job)
    folder = experiment.folder / JOB_FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def began(experiment: Experiment, name: str, exit_code: int | None = None) -> Path:
    """Records job 7, whose first attempt has begun and perhaps ended; returns the job folder."""
    folder = submitted(experiment, name, "7")
    attempts.begin(folder, "7", restarts=0)
    if exit_code is not None:
        attempts.end(folder, "7", exit_code)
    return folder


def test_before_anything_was_run_all_stages_wait(experiment: Experiment, queued: Queue) -> None:
    statuses = read_status(experiment)
    assert {status.state for status in statuses.values()} == {"waiting"}
    assert statuses["a"].waits_for == ()
    assert statuses["tables"].waits_for == ("test_a", "test_b")
    assert not experiment.folder.exists(), "nothing is written"


def test_a_job_that_waits_is_waiting_for_its_stages_or_queued_with_slurm_s_reason(
    experiment: Experiment, queued: Queue
) -> None:
    submitted(experiment, "a", "7")
    submitted(experiment, "b", "8_0")
    queued |= {"7": QueuedJob("PENDING", "Resources"), "8_0": QueuedJob("PENDING", "Dependency")}
    a, b = at(experiment, "a"), at(experiment, "b")
    assert (a.state, a.reason, a.job, a.is_live) == ("queued", "Resources", "7", True)
    assert (b.state, b.waits_for, b.is_live) == ("waiting", ("a",), True)


def test_a_running_training_shows_epoch_errors_and_time_left(
    experiment: Experiment, queued: Queue
) -> None:
    folder = began(experiment, "a")
    attempts.begin(folder, "7", restarts=2)
    queued["7"] = QueuedJob("RUNNING", "None")
    begin(experiment, "a")
    a = at(experiment, "a")
    assert (a.state, a.requeued) == ("running", 2)
    assert (a.epoch, a.train_error, a.top1_error) == (1.0, 0.75, 0.5)
    # 730 steps of 256 images, 64 a second
    assert a.seconds_left == pytest.approx(730 * 256 / 64, rel=0.01)
    assert a.elapsed_seconds == pytest.approx(0, abs=5)
    text = re.sub(r"[│\s]+", " ", render_status(experiment, read_status(experiment)))
    assert "epoch 1.00, top-1 error 50.00 %, in training 75.00 %, about 0:48:40 left" in text
    assert "requeued 2 times" in text


def test_a_stage_with_its_result_is_done_whatever_its_job_says(
    experiment: Experiment, queued: Queue
) -> None:
    submitted(experiment, "a", "7")
    finish(experiment, "a")
    a = at(experiment, "a")
    assert (a.state, a.top1_error, a.top5_error, a.is_live) == ("done", 0.125, 0.0, False)
    assert (a.epoch, a.seconds_left) == (1.0, None)
    assert at(experiment, "b").waits_for == ()


def test_an_evaluation_is_not_done_any_more_once_its_network_is_newer_or_it_is_another_one(
    tmp_path: Path, queued: Queue
) -> None:
    experiment = make_experiment(tmp_path)
    finish(experiment, "a", at=1000)
    finish(experiment, "test_a", at=2000)
    assert at(experiment, "test_a").state == "done"
    changed = make_experiment(tmp_path, "stages.test_a.scales=[32]")
    assert at(changed, "test_a").state == "waiting"
    finish(experiment, "a", at=3000)
    assert at(experiment, "test_a").state == "waiting"


def test_a_report_is_made_again_once_one_of_its_evaluations_is_newer(
    experiment: Experiment, queued: Queue
) -> None:
    for name, time in (("a", 1), ("b", 1), ("test_a", 2), ("test_b", 2), ("tables", 3)):
        finish(experiment, name, at=time)
    began(experiment, "tables", exit_code=0)
    assert at(experiment, "tables").state == "done"
    finish(experiment, "test_b", at=4)
    assert at(experiment, "tables").state == "waiting"


def test_a_training_with_other_settings_than_the_file_s_counts_as_failed(
    tmp_path: Path, queued: Queue
) -> None:
    finish(make_experiment(tmp_path, "set.precision=bf16"), "a")
    # Not listed as a change: auto is the precision that the run has.
    experiment = make_experiment(tmp_path, "stages.a.set.seed=9")
    a = at(experiment, "a")
    assert a.state == "failed"
    assert a.error == (
        f"{tmp_path}/it/a holds a training with other settings (seed 0 -> 9); take these changes "
        "back, or move that folder away to train again."
    )
    assert problems(experiment, [], Layout(1, 1, 0)) == [f"stage a: {a.error}"]


def test_a_job_that_ended_without_a_result_failed_with_the_last_error_of_its_log(
    experiment: Experiment, queued: Queue
) -> None:
    folder = began(experiment, "a", exit_code=3)
    assert at(experiment, "a").error == "it ended with code 3, and its log says nothing."
    (folder / "7_0_log.err").write_text(
        "12:00 step 1/2\nerror: the first one.\nerror: train/ has no folder.\n"
        "srun: error: node1: task 0: Exited with exit code 3\n"
    )
    a = at(experiment, "a")
    assert (a.state, a.error, a.is_live) == ("failed", "train/ has no folder.", False)


def test_a_killed_job_failed_with_what_slurm_wrote(experiment: Experiment, queued: Queue) -> None:
    folder = began(experiment, "a")
    (folder / "7_1_log.err").write_text("slurmstepd: error: Detected 1 oom-kill event\n")
    assert at(experiment, "a").error == "Detected 1 oom-kill event"
    (folder / "7_1_log.err").unlink()
    assert at(experiment, "a").error == "it was killed, and its log says nothing."


def test_a_stopped_job_is_no_failure_unless_its_budget_is_used_up(
    experiment: Experiment, queued: Queue
) -> None:
    folder = began(experiment, "a", exit_code=75)
    assert (at(experiment, "a").state, at(experiment, "a").error) == ("stopped", "")
    (folder / "7_0_log.err").write_text("error: max_requeues, 50, is used up\n")
    attempts.end(folder, "7", exit_code=76)
    a = at(experiment, "a")
    assert (a.state, a.error) == ("stopped", "max_requeues, 50, is used up")


def test_a_job_that_slurm_took_away_waits_while_what_it_needs_is_not_done(
    experiment: Experiment, queued: Queue
) -> None:
    submitted(experiment, "b", "8")
    b = at(experiment, "b")
    assert (b.state, b.waits_for, b.is_live) == ("waiting", ("a",), False)
    finish(experiment, "a")
    assert at(experiment, "b").error == "the job was cancelled before it began."


def test_without_an_answer_of_slurm_the_files_are_believed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(ids: object) -> Queue:
        raise DistributedError("squeue is not here.")

    monkeypatch.setattr(queue, "job_states", refuse)
    folder = began(experiment, "a")
    assert at(experiment, "a").state == "running"
    attempts.end(folder, "7", exit_code=1)
    assert at(experiment, "a").state == "failed"


def hold(folder: Path, stage: str, ready: object, leave: object) -> None:
    with job_log.hold(folder):
        job_log.note(folder, stage, "4711", here=True)
        ready.set()  # type: ignore[attr-defined]
        leave.wait(60)  # type: ignore[attr-defined]


def test_a_stage_that_is_run_here_runs_as_long_as_the_process_that_runs_it(
    experiment: Experiment, queued: Queue
) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    runner = context.Process(target=hold, args=(experiment.folder, "a", ready, leave))
    runner.start()
    assert ready.wait(60)
    a = at(experiment, "a")
    assert (a.state, a.job, a.is_live) == ("running", "4711", True)
    message = r"process \d+ on .* is running the experiment in .*; wait for it"
    with pytest.raises(ConfigError, match=message), job_log.hold(experiment.folder):
        pass
    runner.kill()
    runner.join()
    a = at(experiment, "a")
    assert (a.state, a.error) == ("failed", "it was killed, and its log says nothing.")
    job_log.note(experiment.folder, "a", "4711", here=True, exit_code=75)
    assert at(experiment, "a").state == "stopped"


def test_sweeps_are_tables_with_the_lowest_error_first(
    experiment: Experiment, queued: Queue
) -> None:
    finish(experiment, "rates/optimizer.learning_rate=0.5", top1_error=0.9)
    finish(experiment, "rates/optimizer.learning_rate=0.25", top1_error=0.25)
    shown = status_to_dict(experiment, read_status(experiment))
    rows = json.loads(json.dumps(shown))["sweeps"]["rates"]
    assert [(row["overrides"], row["top1_error"]) for row in rows] == [
        ("optimizer.learning_rate=0.25", 0.25),
        ("optimizer.learning_rate=0.5", 0.9),
    ]
    text = render_status(experiment, read_status(experiment))
    low, high = (text.rindex(f"optimizer.learning_rate={rate} ") for rate in ("0.25", "0.5"))
    assert text.index("Sweep rates") < low < high
    assert "7 stages" not in text
    assert "8 stages: 6 waiting, 2 done" in text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "Traceback (most recent call last):\n  File x\nValueError: not so\n",
            "ValueError: not so",
        ),
        ("2026 ERROR the disk is full\nslurmstepd: error: CANCELLED\n", "the disk is full"),
        ("error: rank 1: another rank has ended; its message says why.\n", None),
        ("all is well\n", ""),
    ],
)
def test_the_last_error_of_a_log_is_found(tmp_path: Path, text: str, error: str | None) -> None:
    log = tmp_path / "7_0_log.err"
    log.write_text(text)
    found = last_error([tmp_path / "none", log])
    assert found == (text.removeprefix("error: ").strip() if error is None else error)


def test_a_record_that_was_cut_short_is_left_out(experiment: Experiment) -> None:
    job_log.note(experiment.folder, "a", "7")
    file = experiment.folder / job_log.JOB_LOG_FILE
    file.write_text(file.read_text() + '{"stage": "a", "jo')
    assert job_log.read(experiment.folder)["a"].job == "7"


def test_a_job_log_of_an_earlier_version_is_read(experiment: Experiment, queued: Queue) -> None:
    experiment.folder.mkdir()
    lines = (
        '{"stage": "a", "job": "12_0", "at": "2026-11-02T08:00:00+00:00", "host": "login", '
        '"here": false, "exit_code": null}',
        '{"stage": "c", "job": "4711", "at": "2026-11-02T08:00:00+00:00", "host": "login", '
        '"here": true, "exit_code": null}',
        '{"stage": "c", "job": "4711", "at": "2026-11-02T09:00:00+00:00", "host": "login", '
        '"here": true, "exit_code": 75}',
    )
    (experiment.folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    queued["12_0"] = QueuedJob("PENDING", "Priority")
    a, c = at(experiment, "a"), at(experiment, "c")
    assert (a.state, a.job, a.reason) == ("queued", "12_0", "Priority")
    assert (c.state, c.job, c.error) == ("stopped", "4711", "")
