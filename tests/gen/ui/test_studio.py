"""The studio with a model: jobs make the pictures that the same call makes, show their steps, stop, and say what is wrong."""

from __future__ import annotations

import io
import threading
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gen import Generator, Recipe
from gen.adapters import Adapter, write_adapter
from gen.calls.call import AdapterUse, Call
from gen.calls.run import run
from gen.pipeline.exif import FORMATS
from gen.ui.gallery import FileKind
from gen.ui.jobs import JobState
from gen.ui.models import AUTOMATIC, adapters_in, chosen_model, controlnets_in, ip_adapters_in, models_in
from gen.ui.studio import Studio, expected_steps, fitted
from tests.gen.test_adapters_generator import DENOISER, lora


@pytest.fixture
def studio(tiny_model, tmp_path):
    folder = tmp_path / "loras"
    (folder / "more").mkdir(parents=True)
    write_adapter(Adapter("style", lora(0, *DENOISER)), folder / "more" / "style.safetensors", "kohya")
    before = warnings.showwarning
    with warnings.catch_warnings():
        one = Studio(tmp_path / "out", tiny_model.parent, folder, str(tiny_model))
        one.begin()
        assert one.ready.wait(60) and not one.problem
        yield one
        one.close()
    assert warnings.showwarning is before


def call(studio, **arguments) -> Call:
    given = {"prompt": "a red heart", "seed": 3, "num_inference_steps": 3, "batch_size": 1, **arguments}
    return Call(given, model=studio.model)


def done(studio, *calls):
    jobs = [studio.submit(one) for one in calls]
    assert studio.jobs.wait(60)
    return jobs


def test_a_job_makes_what_the_call_makes(studio, tiny_model, tmp_path):
    uses = (AdapterUse(studio.adapters()["more/style"], 0.5),)
    plain = call(studio, num_images_per_prompt=2)
    styled = Call(plain.arguments, adapters=uses, model=plain.model)
    jobs = done(studio, plain, styled, plain)
    assert [job.state for job in jobs] == [JobState.DONE] * 3 and not any(job.error for job in jobs)
    for job, one in zip(jobs, (plain, styled, plain), strict=True):
        direct = run(one, Generator.from_pretrained(tiny_model)).save(tmp_path / f"{job.id}.png")
        assert [studio.gallery.path(name).read_bytes() for name in job.pictures] == [path.read_bytes() for path in direct]
    assert jobs[0].previews == 6 and studio.gallery.entries()[0].name == jobs[2].pictures[1]


def test_every_step_has_a_preview_and_a_share(studio):
    seen, shares = [], []
    real = studio.jobs._work

    def work(one, watch):
        step = watch.step

        def noted(number, steps, share, preview=None):
            seen.append((number, steps, Image.open(io.BytesIO(preview)).size))
            shares.append(share)
            step(number, steps, share, preview)

        watch.step = noted
        real(one, watch)

    studio.jobs._work = work
    done(studio, call(studio, num_images_per_prompt=2))
    assert seen == [(1, 3, (8, 8)), (2, 3, (8, 8)), (3, 3, (8, 8))] * 2
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def test_a_stopped_job_keeps_its_finished_pictures(studio):
    second = threading.Event()
    real = studio.jobs._work

    def work(one, watch):
        made = watch.made

        def stop_after(name):
            made(name)
            studio.jobs.stop()
            second.set()

        watch.made = stop_after
        real(one, watch)

    studio.jobs._work = work
    job = studio.submit(call(studio, num_images_per_prompt=5))
    assert second.wait(60) and studio.jobs.wait(60)
    assert job.state is JobState.STOPPED and job.pictures == ["a-red-heart-3.png"]
    assert [entry.name for entry in studio.gallery.entries()] == job.pictures
    assert studio.gallery.recipe(job.pictures[0]).stopped_at is None
    studio.jobs._work = real
    assert done(studio, call(studio))[0].state is JobState.DONE  # the model is as it was


def test_a_picture_of_hours_is_refused_before_it_begins(studio):
    """By its size, and by its work."""
    large, long, usual = done(
        studio,
        call(studio, width=16_384, height=16_384),
        call(studio, width=4096, height=4096, num_inference_steps=100),
        call(studio, num_images_per_prompt=3),
    )
    assert large.state == long.state == JobState.FAILED and usual.state == JobState.DONE
    assert "16384 x 16384" in large.error and not large.previews
    assert "asks for the work of" in long.error and not long.previews


def test_errors_and_warnings_reach_the_job(studio, tmp_path):
    wrong, warned, missing, after = done(
        studio,
        call(studio, sampler="euler_b"),
        call(studio, prompt="a zeppelin"),
        Call({"prompt": "a"}, model=str(tmp_path / "nowhere")),
        call(studio),
    )
    assert wrong.state is JobState.FAILED and "did you mean" in wrong.error
    assert missing.state is JobState.FAILED and "does not exist" in missing.error
    assert warned.state is JobState.DONE and any("zeppelin" in note for note in warned.notes)
    assert after.state is JobState.DONE and after.notes == []


def test_a_seed_and_a_model_are_chosen_before_the_job_waits(studio):
    job = done(studio, Call({"prompt": "a cat", "num_inference_steps": 1}, model=studio.model))[0]
    seed = job.call.arguments["seed"]
    assert 0 <= seed < 1 << 32 and job.pictures == [f"a-cat-{seed}.png"]
    assert studio.settled(Call({"prompt": "a"}, model="automatic")).model == "fast"


def test_a_picture_gives_its_call_back_and_replays(studio, tiny_model):
    uses = (AdapterUse(studio.adapters()["more/style"], 0.5),)
    job = done(studio, Call(call(studio).arguments, adapters=uses, model=studio.model))[0]
    name = job.pictures[0]
    again, missing = studio.call_of(name)
    assert missing == () and again.adapters == uses and again.model == str(tiny_model)
    assert studio.replay(name) == "Made again: equal to the last byte."
    copy = studio.gallery.path(done(studio, again)[0].pictures[0])
    assert copy.read_bytes() == studio.gallery.path(name).read_bytes()
    recipe = studio.gallery.recipe(name)
    other = Image.new("RGB", (32, 32), "red")
    fake = studio.gallery.save(other, recipe)
    assert "of the pixels differ" in studio.replay(fake)
    smaller = studio.gallery.save(other.resize((16, 16)), recipe)
    assert "the file is 16 x 16, its recipe 32 x 32" in studio.replay(smaller)
    values = recipe.model_dump() | {"model": {"name": "/etc/passwd"}}
    foreign = studio.gallery.save(other, Recipe(**values))
    with pytest.raises(ValueError, match="not among those of the page"):
        studio.replay(foreign)
    assert studio.call_of(foreign)[0].model == "automatic"


def test_a_picture_of_any_format_replays(studio):
    for suffix in FORMATS:
        job = studio.submit(call(studio), kind=FileKind(suffix))
        assert studio.jobs.wait(60) and job.pictures == [f"a-red-heart-3{suffix}"]
        assert studio.replay(job.pictures[0]) == "Made again: equal to the last byte.", suffix
    rough = studio.submit(call(studio), kind=FileKind(".jpg", 20))
    assert studio.jobs.wait(60)
    assert "A jpg keeps pixels only nearly." in studio.replay(rough.pictures[0])


def test_a_model_says_what_it_takes_and_draws(studio):
    assert studio.takes(AUTOMATIC, "control") and studio.takes("default", "control") and not studio.takes("fast", "control")
    assert studio.takes(AUTOMATIC, "image_prompt") is False and studio.takes("elsewhere", "control") is None
    assert {"edges", "segments"} <= set(studio.controlnets().values())
    assert chosen_model(Call({"prompt": "a cat", "control": "cat.png", "controlnet": "edges"}, model=AUTOMATIC)) == "default"
    assert studio.takes(studio.model, "image_prompt") is False
    assert studio.sizes("elsewhere") == {}
    sizes = studio.sizes(studio.model)
    assert sizes["1:1"] == (32, 32) and sizes["16:9"] == sizes["9:16"][::-1] == (40, 24)
    for width, height in sizes.values():
        done(studio, call(studio, width=width, height=height, num_inference_steps=1))
        assert Image.open(studio.gallery.path(studio.gallery.entries()[0].name)).size == (width, height)


def test_a_prompt_names_loras_of_the_folder(studio):
    """And is not the student's then, which takes none."""
    named = Call({"prompt": "a cat <lora:style:0.5>"}, model="automatic")
    settled = studio.settled(named)
    assert settled.arguments["lora_dir"] == str(studio.lora_dir) and settled.model == "default"
    (studio.lora_dir / "more" / "style.safetensors").rename(studio.lora_dir / "style.safetensors")
    plain, with_it, after = done(studio, call(studio), call(studio, prompt="a red heart <lora:style:0.5>"), call(studio))
    assert [studio.gallery.recipe(job.pictures[0]).adapters for job in (plain, with_it, after)] == [{}, {"style": 0.5}, {}]
    again, missing = studio.call_of(with_it.pictures[0])
    assert missing == ()
    first, second = (studio.gallery.path(job.pictures[0]).read_bytes() for job in (with_it, done(studio, again)[0]))
    assert first == second


def test_models_of_other_kinds_are_asked_for_what_they_read(class_model, pixel_model, studio):
    for folder, prompt, name in ((class_model, "dog", "image-3.png"), (pixel_model, "", "image-3-1.png")):
        job = done(studio, Call({"prompt": prompt, "seed": 3, "num_inference_steps": 1}, model=str(folder)))[0]
        assert job.error == "" and job.pictures == [name]
    assert fitted(Call({"prompt": "dog"}), Generator.from_pretrained(class_model)).arguments == {"class_labels": "dog"}


def test_the_steps_of_a_call(tiny):
    assert expected_steps(Call({"prompt": "a"}), tiny) == 4
    assert expected_steps(Call({"prompt": "a", "num_inference_steps": 10, "image": "x", "strength": 0.45}), tiny) == 5
    assert expected_steps(Call({"prompt": "a", "num_inference_steps": 10, "image": "x", "mask": "y"}), tiny) == 10
    assert expected_steps(Call({"image": "x", "num_inference_steps": 10}, "upscale"), tiny) == 4


def test_folders_are_read_for_what_is_in_them(tiny_model, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "mine").symlink_to(tiny_model)
    nets = {"net": "ControlNetModel", "flux": "FluxControlNetModel", "t2i": "T2IAdapter"}
    configs = {name: f'{{"_class_name": "{kind}"}}' for name, kind in nets.items()} | {"own": '{"type": "dit_control"}'}
    for name, text in {**configs, "odd": "[" * 100_000, "list": "[]"}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    (folder / "notes.txt").write_text("")
    write_adapter(Adapter("style", lora(0, *DENOISER)), folder / "style.safetensors", "kohya")
    (folder / "ip").mkdir()
    save_file(
        {"image_proj.proj.weight": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)},
        folder / "ip" / "face.safetensors",
    )
    save_file({"image_proj.proj.weight": torch.zeros(1)}, folder / "plain.safetensors")
    assert set(models_in(folder)) == {"mine", "odd", "list"} and set(controlnets_in(folder)) == set(configs)
    assert set(ip_adapters_in(folder)) == {"ip/face", "plain"} and ip_adapters_in(None) == {}
    assert set(adapters_in(folder)) >= {"style"} and models_in(None) == adapters_in(None) == {}
    with pytest.raises(ValueError, match="not a folder"):
        Studio(tmp_path / "out", tmp_path / "nowhere")
