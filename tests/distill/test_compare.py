import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from distill import evaluate as command
from distill.checkpointing.digests import weights_digest
from distill.eval import references as module
from distill.eval.comparison import ComparisonPlan, Row, compare, kept_pictures, markdown, picture_keys, sheet
from distill.eval.model_scores import ScoreSettings, set_distances, subjects
from distill.eval.references import ReferencePictures, in_8_bits
from distill.evaluate import counts
from distill.networks.evaluator.pictures import read_pictures
from distill.networks.features import Features, load_features
from gen.generator import Generator
from gen.models.components import save_component
from gen.nn.registry import build
from tests.distill.evaluation import SIZE
from tests.distill.students import randomise

CONFIG = {
    "path": {"type": "rectified_flow"},
    "prediction": "x0",
    "clock": "1000t",
    "sample_size": SIZE,
    "defaults": {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "ddim", "schedule": "uniform"},
}
DIT = {"type": "dit", "channels": 3, "size": SIZE, "patch": 16, "dim": 16, "depth": 1, "heads": 2}


def model(text_encoder, seed=0, **changes):
    torch.manual_seed(seed)
    network = randomise(build({**DIT, "text_tokens": 40, "text_dim": 16}), seed)
    return Generator({**CONFIG, **changes}, network, None, text_encoder, device="cpu", dtype="float32", name=f"model {seed}")


@pytest.fixture(scope="module")
def models(text_encoder):
    return {"teacher": model(text_encoder), "student": model(text_encoder, 1)}


@pytest.fixture
def opened(models):
    """`open_model`, which remembers what it was asked for."""

    def open_model(name):
        open_model.names.append(name)
        return models[name]

    open_model.names = []
    return open_model


def settings(data, **changes):
    return ScoreSettings(**{"labels": "4", "data": str(data), "batch_size": 3, **changes})


def flat(images):
    """Features that are easily made otherwise: means over a 4 x 4 grid, 48 numbers."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def run(plan, emoji_data, opened, evaluator, text_encoder, folder=None, **changes):
    given = settings(emoji_data, **changes)
    return compare(plan, given, opened, evaluator, text_encoder, Features("flat", flat), ReferencePictures(folder))


def frechet(a, b):
    covariances = [np.cov(x.T) for x in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1] + 0j).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_a_row_for_every_model_and_number_of_steps(emoji_data, opened, models, evaluator, text_encoder):
    plan = ComparisonPlan(("teacher", "student"), (1, 2), "teacher", reference_steps=4)
    rows, common, labels = run(plan, emoji_data, opened, evaluator, text_encoder)
    shown = [(row.model, row.numbers["steps"]) for row in rows]
    assert shown == [("teacher", 4), ("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2)]
    assert opened.names == ["teacher", "student"]  # each read once
    assert common["pictures_per_row"] == len(labels) == 4 and common["real_training_pictures"]["top1"] > 0.4
    assert [row.numbers["evaluations_per_image"] for row in rows] == [8, 2, 4, 2, 4]  # guided
    json.dumps([row.numbers for row in rows], allow_nan=False)

    seeds = subjects(settings(emoji_data), labels)[1]
    direct = {}
    for name, steps in shown:
        images = models[name](labels, num_inference_steps=steps, seeds=seeds, output_type="np", progress=False).images
        direct[name, steps] = np.asarray(images * 255).round().transpose(0, 3, 1, 2) / 127.5 - 1
    for row in rows:
        images = direct[row.model, row.numbers["steps"]]
        assert np.abs(row.images.numpy() - images).max() < 2.1 / 255 and np.abs(row.images.numpy() - images).mean() < 1e-4
        if row is rows[0]:
            assert "distance_to_reference" not in row.numbers
            continue
        apart = np.sqrt(((images - direct["teacher", 4]) ** 2).mean((1, 2, 3))).mean()
        assert row.numbers["distance_to_reference"] == pytest.approx(apart, rel=1e-3) and apart > 0.01
        mine, theirs = (flat(torch.from_numpy(x)).numpy() for x in (images, direct["teacher", 4]))
        assert row.numbers["reference_frechet_distance"] == pytest.approx(frechet(mine, theirs), rel=1e-2, abs=1e-4)
    drawings, _ = read_pictures(emoji_data / "emoji-train.zip", SIZE, set(labels))
    for row in rows:
        mine, real = flat(row.images).numpy(), flat(drawings).numpy()
        assert (row.numbers["precision"], row.numbers["recall"]) == (covered(mine, real), covered(real, mine))
        assert row.numbers["frechet_distance"] == pytest.approx(frechet(mine, real), rel=1e-3)


def test_precision_is_of_the_generated_and_recall_of_the_real():
    real = torch.cat([torch.arange(20.0), 100 + torch.arange(20.0)])[:, None]
    report = set_distances(torch.linspace(0, 19, 12)[:, None], real)
    assert report["precision"] == 1 and report["recall"] == 0.5


def covered(points, manifold):
    """The share of points within the ball of any point of the manifold that reaches its third neighbour."""
    apart = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)  # noqa: E731
    radii = np.sort(apart(manifold, manifold), 1)[:, 3]
    return (apart(points, manifold) <= radii + 1e-9).any(1).mean()


def test_a_model_at_the_reference_s_own_settings_is_the_reference(emoji_data, opened, evaluator, text_encoder):
    plan = ComparisonPlan(("teacher",), (3,), "teacher", reference_steps=3)
    (reference, same), _, _ = run(plan, emoji_data, opened, evaluator, text_encoder)
    assert same.numbers["distance_to_reference"] == 0 and abs(same.numbers["reference_frechet_distance"]) < 1e-6
    assert same.numbers["reference_precision"] == same.numbers["reference_recall"] == 1
    assert reference.numbers["frechet_distance"] == same.numbers["frechet_distance"] > 1e-3
    other = ComparisonPlan(("teacher",), (3,), "teacher", reference_steps=3, reference_guidance_scale=1.0)
    (_, same), _, _ = run(other, emoji_data, opened, evaluator, text_encoder)
    assert same.numbers["distance_to_reference"] > 0.01


def test_the_reference_has_a_sampler_of_its_own(emoji_data, opened, evaluator, text_encoder):
    for given, own, evaluations in ((None, "heun", [8, 6]), ("heun", None, [6, 8])):
        plan = ComparisonPlan(("student",), (3,), "teacher", 3, reference_sampler=own)
        rows, _, _ = run(plan, emoji_data, opened, evaluator, text_encoder, sampler=given)
        assert [row.numbers["evaluations_per_image"] for row in rows] == evaluations


def test_other_noise_is_not_held_against_the_reference(emoji_data, evaluator, text_encoder, models):
    made = {"teacher": models["teacher"], "larger": model(text_encoder, 1, sample_size=2 * SIZE)}
    rows, _, _ = run(ComparisonPlan(("larger",), (1,), "teacher", 1), emoji_data, made.__getitem__, evaluator, text_encoder)
    assert "reference_frechet_distance" in rows[1].numbers and "distance_to_reference" not in rows[1].numbers


def test_without_steps_every_model_takes_its_own(emoji_data, opened, evaluator, text_encoder):
    rows, _, _ = run(ComparisonPlan(("teacher", "student")), emoji_data, opened, evaluator, text_encoder, per_label=2)
    assert [row.numbers["steps"] for row in rows] == [3, 3] and len(rows[0].images) == 8
    assert rows[0].images[:4].sub(rows[0].images[4:]).abs().flatten(1).mean(1).min() > 1e-3  # other seeds


def test_the_reference_is_drawn_once_and_kept(emoji_data, opened, models, evaluator, text_encoder, tmp_path, monkeypatch):
    drawn = []
    real = Generator.__call__
    counted = lambda self, prompt, **k: drawn.extend(prompt) or real(self, prompt=prompt, **k)  # noqa: E731
    monkeypatch.setattr(Generator, "__call__", counted)
    plan = ComparisonPlan(("student",), (1,), "teacher", 2)
    first, _, labels = run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)
    assert len(drawn) == 8 and len(list(tmp_path.rglob("*.png"))) == 4
    drawn.clear()
    second, _, _ = run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)
    assert drawn == labels[:3] + labels  # one batch for its time, then the student
    without_time = [{k: v for k, v in row.numbers.items() if k != "seconds_per_image"} for row in (*first, *second)]
    assert without_time[:2] == without_time[2:] and all(row.numbers["seconds_per_image"] > 0 for row in second)
    drawn.clear()
    broken = sorted(tmp_path.rglob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:100])
    run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)
    assert len(drawn) == 1 + 4 and len(list(tmp_path.rglob("*.png"))) == 4
    run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path, labels="2")
    assert len(drawn) == 5 + 2 + 2  # two of the four
    assert Image.open(broken).size == (SIZE, SIZE)


def test_a_kept_picture_that_is_no_longer_drawn_is_told(emoji_data, opened, evaluator, text_encoder, tmp_path):
    plan = ComparisonPlan(("student",), (1,), "teacher", 1)
    run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)
    for path in tmp_path.rglob("*.png"):
        Image.new("RGB", (SIZE, SIZE), "white").save(path)
    with pytest.warns(UserWarning, match="delete the folder"):
        run(plan, emoji_data, opened, evaluator, text_encoder, tmp_path)


def test_everything_that_a_picture_depends_on_is_in_its_key(emoji_data, text_encoder, models):
    teacher, own = models["teacher"], settings(emoji_data, steps=2)
    keys = picture_keys(teacher, ["a cat", "a dog"], [1, 2], own)
    assert keys == picture_keys(model(text_encoder), ["a cat", "a dog"], [1, 2], settings(emoji_data, steps=2, batch_size=1))
    others = [
        picture_keys(teacher, ["a dog", "a cat"], [1, 2], own),
        picture_keys(teacher, ["a cat", "a dog"], [3, 4], own),
        *(picture_keys(teacher, ["a cat", "a dog"], [1, 2], settings(emoji_data, **{"steps": 2, **changes}))
          for changes in ({"steps": 3}, {"guidance_scale": 3.0}, {"sampler": "euler"})),
        picture_keys(models["student"], ["a cat", "a dog"], [1, 2], own),
        picture_keys(model(text_encoder, prediction="v"), ["a cat", "a dog"], [1, 2], own),
    ]  # fmt: skip
    assert len({key for some in (keys, *others) for key in some}) == 16


def test_weights_digests_see_every_bit(text_encoder):
    network = torch.nn.Linear(3, 2)
    before = weights_digest({"a": network, "b": None})
    with torch.no_grad():
        network.bias[1] = torch.nextafter(network.bias[1], torch.tensor(9.0))
    after = weights_digest({"a": network, "b": None})
    assert before != after != weights_digest({"b": network}) and after == weights_digest({"a": network})
    assert weights_digest({"a": network.bfloat16()}) != after


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", full)
    images, kept = torch.rand(3, 3, 4, 4) * 2 - 1, ReferencePictures(tmp_path)
    with pytest.warns(UserWarning, match="No space left") as told:
        made, count = kept.all(["aa", "bb", "cc"], lambda missing: ((i, images[i]) for i in missing))
    assert len(told) == 1 and count == 3 and torch.equal(made, in_8_bits(images))


def test_what_was_drawn_before_an_interruption_stays(models, emoji_data, tmp_path):
    own, kept = settings(emoji_data, batch_size=1, steps=1), ReferencePictures(tmp_path)
    calls = []

    def failing(prompt, **options):
        calls.append(prompt)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return models["teacher"](prompt, **options)

    failing.__dict__.update(vars(models["teacher"]))
    with pytest.raises(KeyboardInterrupt):
        kept_pictures(failing, list("abcd"), [1, 2, 3, 4], own, kept)
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert len(kept_pictures(models["teacher"], list("abcd"), [1, 2, 3, 4], own, kept).images) == 4


def test_tables_and_sheets():
    images = torch.zeros(20, 3, 4, 4)
    rows = [Row("teacher", {"steps": 50, "top1": 0.91234, "seconds_per_image": 12.0}, images),
            Row("a|student", {"steps": 1, "top1": 0.5, "frechet_distance": 1234.5}, images)]  # fmt: skip
    lines = markdown(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["model", "steps", "seconds", "top-1", "FD"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["teacher", "50", "12", "0.912", ""]
    assert len({len(line) for line in lines}) == 1 and "a\\|student" in lines[3]
    shown, captions, columns = sheet(rows, [f"label {i}" for i in range(20)])
    assert len(shown) == len(captions) == 20 and columns == 10
    assert captions[1] == "teacher 50: label 2" and captions[11] == "a|student 1: label 2"


def test_counts():
    assert counts("8") == (8,) and counts("1, 2,2,8") == (1, 2, 8)
    for wrong in ("", "0", "1,", "a", "-1", "1.5", "٣"):
        with pytest.raises(ValueError, match="give a number of at least 1, or several"):
            counts(wrong)


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match="did you mean 'evaluator'"):
        load_features("evalator")


def test_the_command_writes_a_table(emoji_data, text_encoder, evaluator, models, tmp_path, monkeypatch, capsys):
    save_component(evaluator, tmp_path / "evaluator")
    save_component(text_encoder, tmp_path / "text")
    for name, one in models.items():
        one.save_pretrained(tmp_path / name)
    base = ["--data", str(emoji_data), "--evaluator", str(tmp_path / "evaluator"), "--text-encoder", str(tmp_path / "text"),
            "--out", str(tmp_path / "out"), "--references", str(tmp_path / "kept"), "--labels", "4"]  # fmt: skip
    names = [str(tmp_path / name) for name in ("teacher", "student")]
    assert (
        command.main([*base, "--model", *names, "--reference-model", names[0], "--steps", "1,2", "--reference-steps", "3"]) == 0
    )
    shown, report = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    assert shown.count(names[1]) == 2 and "RMSE to ref." in shown
    assert (tmp_path / "out" / "table.md").read_text() in shown
    assert [row["steps"] for row in report["rows"]] == [3, 1, 2, 1, 2] and report["features"] == f"evaluator:{base[3]}"
    assert Image.open(tmp_path / "out" / "sheet.png").height > 5 * SIZE
    for more, message in (
        (["--steps", "1,x"], "1,2,4,8"),
        (["--composition", "--steps", "1,2"], "without a reference"),
        (["--model", names[0], "nowhere"], "nowhere does not exist"),
        (["--steps", "1,2", "--model", f"{names[0]}+nowhere"], "nowhere"),
        (["--labels", "1", "--steps", "1,2", "--model", names[0]], "at least two pictures"),
        (["--per-label", "0"], "must be at least 1"),
    ):
        assert command.main([*base, *more]) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("fewstep: ") and message in error and "Traceback" not in error
