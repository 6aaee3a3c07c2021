"""What the tab "Teach" says as a command, and how its process is watched; no page and no training."""

from __future__ import annotations

import sys
import threading

import pytest
from PIL import Image

from gen.ui.checks import FieldError
from gen.ui.jobs import JobState
from gen.ui.models import AUTOMATIC
from gen.ui.studio import Studio
from gen.ui.trainings import TrainingPicture, TrainingSettings, _Heard


@pytest.fixture
def studio(tmp_path):
    one = Studio(tmp_path / "out")
    yield one
    one.close()


@pytest.fixture
def pictures(tmp_path):
    files = [tmp_path / f"given-{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(file)
    return [TrainingPicture(str(files[0])), TrainingPicture(str(files[1]), "its own")]


def settings(pictures, **values) -> TrainingSettings:
    return TrainingSettings(**{"name": "My cat!", "prompt": "a <new> cat", "pictures": pictures, **values})


def test_the_settings_are_a_command_and_a_folder_of_pictures_with_captions(studio, pictures):
    one = settings(pictures, word="<new>", starts_as="cat", steps=7, rank=2, style=True, class_prompt="a cat")
    job = one.to_job(AUTOMATIC)
    words = job.command(studio, studio.loras / "x.safetensors")
    assert words[:2] == ["lora", "train"]
    options = ("--steps=7", "--rank=2", "--token=<new>=cat", "--class-prompt=a cat", "--all-layers", "--model=default")
    assert set(options) < set(words) and f"--output={studio.loras / 'x.safetensors'}" in words
    folder = job.folder(studio)
    assert str(folder) == words[2]
    assert {file.name: file.read_text() for file in folder.glob("*.txt")} == {
        "000.txt": "a <new> cat\n",
        "001.txt": "its own\n",
    }
    assert [Image.open(folder / f"00{i}.png").getpixel((0, 0)) for i in (0, 1)] == [(0, 0, 0), (1, 0, 0)]
    assert settings(pictures, steps=8).to_job(AUTOMATIC).folder(studio) != folder == one.to_job(AUTOMATIC).folder(studio)
    assert job.name == "my-cat" and "my-cat.safetensors" in job.as_command(studio)
    assert "--model=/models/other" in settings(pictures).to_job("/models/other").words


def test_a_text_is_never_an_option(studio, pictures):
    job = settings(pictures, name="--run=/etc", prompt="--output=/x <new>", word="<new>", starts_as="--resume=never").to_job(
        "m"
    )
    words = job.command(studio, studio.loras / "x.safetensors")
    assert job.name == "run-etc" and "--token=<new>=--resume=never" in words
    assert [word for word in words if word.startswith("--output")] == [f"--output={studio.loras / 'x.safetensors'}"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"pictures": []}, "pictures"),
        ({"name": " "}, "name"),
        ({"prompt": ""}, "prompt"),
        ({"word": "<other>"}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"rank": 2.5}, "rank"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(pictures, values, field):
    with pytest.raises(FieldError) as wrong:
        settings(**{"pictures": pictures, **values}).to_job(AUTOMATIC)
    assert wrong.value.field == field


def test_progress_and_reasons_are_read_from_what_is_printed():
    heard = _Heard(None)
    heard.hear("  50%|#####     | 8/16 [00:01<00:01,  7.9picture/s]")
    assert heard.steps == 0
    heard.hear("  2%|2         | 6/300 [00:10<08:10,  1.67s/step, loss=0.1]")
    heard.hear("Note: of something")
    assert (heard.step, heard.steps, heard.reason) == (6, 300, "")
    heard.hear("fewstep: It cannot be; do otherwise.")
    assert heard.reason == "It cannot be; do otherwise."


PROGRAM = {
    "trained": "import sys, pathlib; pathlib.Path([w for w in sys.argv if w.startswith('--output=')][0][9:]).write_text('x');"
    "print(' 100%|#| 3/3 [00:01<00:00, 2.0step/s]', file=sys.stderr)",
    "refused": "import sys; print('fewstep: It cannot be; do otherwise.', file=sys.stderr); sys.exit(2)",
    "endless": "import sys, time; print(' 1%|#| 1/9 [00:01<00:00, 2.0step/s]', file=sys.stderr, flush=True);time.sleep(99)",
}


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Another program in the place of the one that trains."""

    def put(name: str) -> None:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM[name])
        import subprocess

        begin = subprocess.Popen
        replace = lambda words, **more: begin([sys.executable, str(script), *words[3:]], **more)  # noqa: E731
        monkeypatch.setattr("gen.ui.trainings.subprocess.Popen", replace)

    return put


def test_a_finished_training_is_among_the_adapters(studio, pictures, program):
    program("trained")
    first, second = (studio.trainings.add(settings(pictures).to_job(AUTOMATIC), "teach") for _ in range(2))
    assert studio.trainings.wait(60)
    assert first.state is JobState.DONE and first.progress.steps in (0, 3)
    assert [job.call.made.name for job in (first, second)] == ["my-cat.safetensors", "my-cat-2.safetensors"]
    assert set(studio.adapters()) == {"my-cat", "my-cat-2"}


def test_a_refusal_is_said_in_its_own_words(studio, pictures, program):
    program("refused")
    job = studio.trainings.add(settings(pictures).to_job(AUTOMATIC), "teach")
    assert studio.trainings.wait(60)
    assert job.state is JobState.FAILED and job.error == "It cannot be; do otherwise." and job.call.made is None


def test_a_stopped_training_ends_its_process(studio, pictures, program):
    program("endless")
    job = studio.trainings.add(settings(pictures).to_job(AUTOMATIC), "teach")
    with studio.trainings._condition:
        assert studio.trainings._condition.wait_for(lambda: job.progress.steps == 9, 60)
    studio.trainings.stop()
    assert studio.trainings.wait(60)
    assert job.state is JobState.STOPPED and job.call.made is None
    assert not any(thread.name == "training" for thread in threading.enumerate())
