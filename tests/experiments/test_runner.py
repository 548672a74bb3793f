"""What is missing of an experiment is submitted or run, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.made_experiments import finish, make_experiment
from vggdist import evaluate as evaluation
from vggdist.errors import EXIT_STOPPED, DistributedError, StoppedError
from vggdist.evaluate import Request
from vggdist.experiments import job_log
from vggdist.experiments import runner as running
from vggdist.experiments.payloads import EvaluationPayload, ReportPayload
from vggdist.experiments.runner import ALONE, missing, problems, run_here
from vggdist.experiments.schema import load_experiment
from vggdist.experiments.stages import (
    EXPERIMENT_FILE,
    JOB_FOLDER,
    Evaluation,
    Experiment,
    definition,
)
from vggdist.experiments.status import read_status
from vggdist.slurm import queue
from vggdist.slurm.queue import QueuedJob
from vggdist.slurm.settings import ClusterSettings
from vggdist.slurm.submit import Layout, Submission
from vggdist.training.signals import StopSignal


def template(experiment: Experiment) -> Submission:
    return Submission(
        name="it",
        payloads=(),
        layout=Layout(2, 4, 4),
        settings=ClusterSettings(),
        folder=experiment.folder / JOB_FOLDER,
        command="vggdist experiment run it.yaml",
    )


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    """What would go to SLURM, whose jobs are 10, 11 ... and then wait in its queue."""
    sent: list[Submission] = []

    def submit(submission: Submission) -> tuple[str, ...]:
        sent.append(submission)
        job, count = str(9 + len(sent)), len(submission.payloads)
        return (job,) if count == 1 else tuple(f"{job}_{place}" for place in range(count))

    monkeypatch.setattr(running, "submit", submit)
    monkeypatch.setattr(
        queue, "job_states", lambda ids: {job: QueuedJob("PENDING", "None") for job in ids}
    )
    return sent


def submit_missing(experiment: Experiment) -> list[str]:
    """What is said of each job, without its number."""
    said: list[str] = []
    statuses = read_status(experiment)
    jobs = running.submit_missing(experiment, statuses, template(experiment), said.append)
    logged = job_log.read(experiment.folder)
    assert jobs == {name: logged[name].job for name in jobs}
    return [line.partition(": ")[2] for line in said]


RATES = ("rates/optimizer.learning_rate=0.5", "rates/optimizer.learning_rate=0.25")
BOTH = ", ".join(RATES)


def test_all_stages_are_submitted_at_once_alike_ones_as_arrays_each_after_what_it_needs(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    experiment = make_experiment(tmp_path)
    assert submit_missing(experiment) == [
        f"a, {BOTH}",
        "b, c after a",
        "test_a after a",
        "test_b after b",
        "tables after test_a, test_b",
    ]
    assert [submission.dependency for submission in submissions] == [
        None,
        "afterok:10_0",
        "afterok:10_0",
        "afterok:11_0",
        "afterok:12:13",
    ]
    assert [submission.name for submission in submissions] == [
        "it.trainings",
        "it.trainings",
        "it.test_a",
        "it.test_b",
        "it.tables",
    ]
    assert [submission.layout for submission in submissions] == [Layout(2, 4, 4)] * 4 + [ALONE]
    assert {submission.folder for submission in submissions} == {tmp_path / "it" / "jobs"}
    assert {name: job.job for name, job in job_log.read(experiment.folder).items()} == {
        "a": "10_0",
        RATES[0]: "10_1",
        RATES[1]: "10_2",
        "b": "11_0",
        "c": "11_1",
        "test_a": "12",
        "test_b": "13",
        "tables": "14",
    }
    again = load_experiment(experiment.folder)
    assert again.stages == experiment.stages, "the folder says what was run"


def test_the_same_again_submits_nothing_while_everything_is_queued(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    experiment = make_experiment(tmp_path)
    submit_missing(experiment)
    count = len(submissions)
    assert submit_missing(experiment) == []
    assert len(submissions) == count


def test_what_is_missing_waits_for_what_is_queued_and_not_for_what_is_done(
    tmp_path: Path, submissions: list[Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(tmp_path)
    submit_missing(experiment)
    finish(experiment, "a", at=1)
    finish(experiment, "test_a", at=2)
    # c and test_b have failed; tables was taken away with test_b; b still runs
    monkeypatch.setattr(
        queue,
        "job_states",
        lambda ids: {"11_0": QueuedJob("RUNNING", "None")} if "11_0" in ids else {},
    )
    submissions.clear()
    assert submit_missing(experiment) == [
        f"{BOTH}, c",
        "test_b after b",
        "tables after test_b",
    ]
    assert submissions[1].dependency == "afterok:11_0"


def test_what_slurm_took_before_it_refused_is_remembered(
    tmp_path: Path, submissions: list[Submission], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(tmp_path)
    submit = running.submit

    def refuse_the_second(submission: Submission) -> tuple[str, ...]:
        if submissions:
            raise DistributedError("SLURM refuses the job.")
        return submit(submission)

    with monkeypatch.context() as patch:
        patch.setattr(running, "submit", refuse_the_second)
        with pytest.raises(DistributedError):
            submit_missing(experiment)
    assert missing(read_status(experiment)) == ("b", "c", "test_a", "test_b", "tables")
    assert submit_missing(experiment)[0] == "b, c after a"


def test_payloads_are_those_of_the_stages(tmp_path: Path, submissions: list[Submission]) -> None:
    folder = str(tmp_path / "it")
    submit_missing(make_experiment(tmp_path))
    evaluation, report = submissions[2].payloads[0], submissions[4].payloads[0]
    assert isinstance(evaluation, EvaluationPayload)
    assert evaluation == EvaluationPayload(
        stage=Evaluation("test_a", "a", protocols=("dense",), scales=(32, 40), settings=()),
        network=f"{folder}/a",
        root="/images",
        folder=f"{folder}/test_a",
    )
    assert definition(evaluation.stage) == {
        "name": "test_a",
        "network": "a",
        "protocols": ["dense"],
        "scales": [32, 40],
        "settings": [],
    }
    assert isinstance(report, ReportPayload)
    assert report.evaluations == (f"{folder}/test_a", f"{folder}/test_b")


def test_what_jobs_would_meet_after_hours_is_known_before(
    tmp_path: Path,
) -> None:
    finish(make_experiment(tmp_path), "c")
    text = (tmp_path / "it.yaml").read_text().replace("data: /images\n", "")
    (tmp_path / "it.yaml").write_text(text)
    experiment = load_experiment(
        tmp_path / "it.yaml", ["stages.c.set.seed=3", "stages.b.set.batch.global=100"]
    )
    changed, data, others, b = problems(experiment, list(experiment.stages), Layout(3, 1, 0))
    assert changed.startswith("stage c: ")
    assert "(seed 0 -> 3)" in changed
    assert data == "data is not set; give the folder of the data set: data=/data/imagenet."
    names = ", ".join(["a", *RATES, "c"])
    assert others.startswith(f"{names}: batch.global 256 cannot be shared equally by 3 ranks")
    assert b.startswith("b: batch.global 100 cannot be shared equally by 3 ranks; set it to 99")


@pytest.fixture
def run_stage(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Stage -> the code that it ends with when it is run here, else 0; all that were run."""
    codes: dict[str, int] = {}

    def run_local(submission: Submission, started: Callable[[str], None]) -> int:
        name = submission.name.removeprefix("it.")
        started("4711")
        code = codes.setdefault(name, 0)
        if code == 0:
            finish(load_experiment(submission.folder.parent), name, at=len(codes))
        return code

    monkeypatch.setattr(running, "run_local", run_local)
    return codes


def run_all(experiment: Experiment) -> tuple[int, list[str]]:
    said: list[str] = []
    seconds = dict.fromkeys(experiment.stages, 10.0)
    return run_here(
        experiment, read_status(experiment), template(experiment), said.append, seconds
    ), said


def test_here_stages_are_run_in_order_and_not_again(
    tmp_path: Path, run_stage: dict[str, int]
) -> None:
    experiment = make_experiment(tmp_path)
    code, said = run_all(experiment)
    assert code == 0
    assert list(run_stage) == ["a", *RATES, "b", "c", "test_a", "test_b", "tables"]
    assert said[0] == "stage a, 1 of 8"
    assert said[1].startswith("stage rates/optimizer.learning_rate=0.5, 2 of 8, about 0:00:0")
    assert (experiment.folder / EXPERIMENT_FILE).is_file()
    run_stage.clear()
    assert run_all(experiment) == (0, [])
    assert run_stage == {}


def test_a_stage_that_fails_here_holds_back_only_what_needs_it(
    tmp_path: Path, run_stage: dict[str, int]
) -> None:
    run_stage["b"] = 4
    experiment = make_experiment(tmp_path)
    code, said = run_all(experiment)
    assert code == 4
    states = {name: status.state for name, status in read_status(experiment).items()}
    assert states == {
        "a": "done",
        **dict.fromkeys(RATES, "done"),
        "b": "failed",
        "c": "done",
        "test_a": "done",
        "test_b": "waiting",
        "tables": "waiting",
    }
    assert "stage test_b is held back: b is not done." in said
    assert "stage tables is held back: test_b is not done." in said
    run_stage.clear()
    assert run_all(experiment)[0] == 0
    assert list(run_stage) == ["b", "test_b", "tables"], "the same again does what is missing"


def test_a_signal_ends_all_stages_here(tmp_path: Path, run_stage: dict[str, int]) -> None:
    run_stage["b"] = EXIT_STOPPED
    experiment = make_experiment(tmp_path)
    code, said = run_all(experiment)
    assert (code, said[-1]) == (EXIT_STOPPED, "stopped; the same command continues.")
    assert read_status(experiment)["b"].state == "stopped"
    assert read_status(experiment)["c"].state == "waiting"


def test_an_evaluation_heeds_the_signals_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(request: Request, stop: StopSignal) -> None:
        assert stop is signals
        raise StoppedError("stopped in an evaluation.")

    signals = StopSignal()
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    stage = make_experiment(tmp_path).stages["test_b"]
    assert isinstance(stage, Evaluation)
    payload = EvaluationPayload(stage, "net", "data", str(tmp_path))
    assert payload.run(signals) == EXIT_STOPPED
    assert not (tmp_path / "result.json").exists()
