import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from distill import evaluate as module
from distill.data.emoji.captions import HELD_OUT
from distill.data.emoji.recolor import BACKGROUNDS
from distill.eval.colours import object_colours
from distill.eval.model_scores import ScoreSettings, choose_labels, composition, evaluate
from distill.evaluate import main
from distill.networks.evaluator.network import Evaluator, EvaluatorConfig
from gen.models.components import save_component
from tests.distill.evaluation import LABELS, SIZE, VENDORS, archive, picture


class Drawing:
    """Stands in for a Generator: `draw(prompt, seed)` gives a picture (3, SIZE, SIZE) in [0, 1]."""

    def __init__(self, draw):
        self.draw, self.calls = draw, []

    def __call__(self, prompt, seeds, **options):
        self.calls.append((prompt, seeds, options))
        images = torch.stack([self.draw(p, s) for p, s in zip(prompt, seeds, strict=True)])
        return SimpleNamespace(images=images, nfe=options["num_inference_steps"] or 7)


def copying(prompt, seed):
    return picture(prompt, "noto").float() / 255


def noise(prompt, seed):
    return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def settings(data, **changes):
    return ScoreSettings(**{"labels": "5", "data": str(data), "batch_size": 2, "steps": 3, **changes})


def test_a_model_that_copies_scores_full_marks_and_is_found_out(emoji_data, text_encoder, evaluator):
    drawing = Drawing(copying)
    report, made, labels = evaluate(drawing, evaluator, text_encoder, settings(emoji_data))
    assert len(labels) == 5 and report["labels"] == 5 and made.images.shape == (5, 3, SIZE, SIZE)
    assert report["top1"] == report["top5"] == 1.0
    assert report["near_copies"]["share"] == 1.0 and report["near_copies"]["median_distance"] < 1e-6
    assert report["evaluations_per_image"] == pytest.approx(3)
    assert [len(prompt) for prompt, _, _ in drawing.calls] == [2, 2, 1]
    json.dumps(report, allow_nan=False)


def test_noise_scores_nothing(emoji_data, text_encoder, evaluator):
    drawn = {labels: evaluate(Drawing(draw), evaluator, text_encoder, settings(emoji_data))[0]
             for labels, draw in (("copies", copying), ("noise", noise))}  # fmt: skip
    assert drawn["noise"]["near_copies"]["share"] == 0.0
    assert drawn["noise"]["top1"] <= 0.4
    assert drawn["noise"]["frechet_distance"] > 3 * drawn["copies"]["frechet_distance"] > 0
    assert drawn["noise"]["precision"] < drawn["copies"]["precision"]
    assert drawn["noise"]["real_training_pictures"] == drawn["copies"]["real_training_pictures"]


def test_a_label_drawn_as_another_is_wrong(emoji_data, text_encoder, evaluator):
    following = dict(zip(LABELS, LABELS[1:] + LABELS[:1], strict=True))
    report, _, _ = evaluate(Drawing(lambda p, s: copying(following[p], s)), evaluator, text_encoder, settings(emoji_data))
    assert report["top1"] == 0.0 and report["near_copies"]["share"] > 0


def test_alignment_is_the_mean_cosine_with_the_own_prompt(emoji_data, text_encoder, evaluator):
    report, made, labels = evaluate(Drawing(noise), evaluator, text_encoder, settings(emoji_data))
    images, texts = evaluator.embed(made.images), evaluator.embed_texts(text_encoder.pooled(labels))
    cosines = [[float(i @ t) for t in texts] for i in images]
    own = sum(cosines[i][i] for i in range(5)) / 5
    others = sum(cosines[i][j] for i in range(5) for j in range(5) if i != j) / 20
    assert report["prompt_alignment"] == pytest.approx(own, abs=1e-5)
    assert report["alignment_with_other_prompts"] == pytest.approx(others, abs=1e-5)


def test_a_held_out_archive_gives_the_comparison(emoji_data, text_encoder, evaluator, tmp_path):
    archive(tmp_path / "emoji-train.zip", VENDORS)
    archive(tmp_path / "emoji-test.zip", ("emojione",))
    assert "real_held_out_pictures" not in evaluate(Drawing(noise), evaluator, text_encoder, settings(emoji_data))[0]
    report, _, labels = evaluate(Drawing(noise), evaluator, text_encoder, settings(tmp_path))
    images = torch.stack([picture(label, "emojione") for label in labels]).float() / 127.5 - 1
    right = evaluator.classify(images).argmax(1) == torch.tensor([LABELS.index(label) for label in labels])
    assert report["real_held_out_pictures"]["top1"] == pytest.approx(right.double().mean().item())


def test_seeds_are_the_labels_own(emoji_data, text_encoder, evaluator):
    """A label's picture does not depend on which other labels are drawn, nor on the batch size."""

    def seeds(**changes):
        drawing = Drawing(noise)
        evaluate(drawing, evaluator, text_encoder, settings(emoji_data, **changes))
        return {p: s for prompts, numbers, _ in drawing.calls for p, s in zip(prompts, numbers, strict=True)}

    few, many, other = seeds(labels="2"), seeds(labels="common", batch_size=3), seeds(labels="2", seed=1)
    assert few.items() <= many.items() and len(many) > len(few) and not set(few.values()) & set(other.values())


def test_composition_measures_colour_and_object_apart(text_encoder, evaluator):
    """Flat discs of the colour asked for: the colour is right throughout, whatever the object scores."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    by_prompt = {pair.prompt: pair for pair in HELD_OUT}

    def disc(prompt, seed, colour=None):
        rgb = torch.tensor(BACKGROUNDS[colour or by_prompt[prompt].colour]).float() / 255
        return torch.where(x**2 + y**2 < 0.5, rgb[:, None, None], 1.0)

    wanted = ScoreSettings(repeats=2)
    report, made, prompts = composition(Drawing(disc), evaluator, text_encoder, wanted)
    assert len(prompts) == 2 * len(HELD_OUT) == report["pictures"] == len(made.images)
    assert report["colour"] == 1.0 and report["both"] == report["object_top5"] < 1
    assert report["by_pair"]["a green dog"]["colours_found"] == ["green", "green"]
    wrong, _, _ = composition(Drawing(lambda p, s: disc(p, s, "orange")), evaluator, text_encoder, wanted)
    assert wrong["colour"] == wrong["both"] == 0.0


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((230, 40, 40), "red"), ((60, 110, 230), "blue"), ((60, 170, 70), "green"), ((140, 70, 200), "purple"),
     ((250, 210, 60), "yellow"), ((245, 150, 60), "orange"), ((140, 95, 60), "brown"), ((250, 170, 200), "pink"),
     ((60, 180, 180), "teal"), ((128, 128, 128), "gray"), ((20, 20, 24), "black")],
)  # fmt: skip
@pytest.mark.parametrize("background", [(255, 255, 255), (180, 215, 250)])
def test_object_colours_ignore_the_background(rgb, name, background):
    image = torch.tensor(background).float().view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()
    image[:, :, 16:48, 20:44] = torch.tensor(rgb).float().view(3, 1, 1)
    image[:, :, 20:24, 24:28] = 10.0  # an eye does not matter
    assert object_colours(image / 127.5 - 1) == [name]


def test_an_object_of_many_colours_or_none_is_not_given_one():
    generator = torch.Generator().manual_seed(0)
    image = torch.ones(2, 3, 64, 64)
    image[0, :, 16:48, 16:48] = torch.rand(3, 32, 32, generator=generator) * 2 - 1
    assert object_colours(image) == ["gray", "white"]


def test_choose_labels():
    known, common = ["a", "b", "c", "d", "e"], ["d", "x", "b", "a", "c"]
    assert choose_labels("all", known, common) == known
    assert choose_labels("common", known, common) == ["d", "b", "a", "c"]
    assert choose_labels("2", known, common) == ["d", "a"]
    for wrong in ("0", "5", "many", "-1", "1.5", "٣"):
        with pytest.raises(ValueError, match="from 1 to 4"):
            choose_labels(wrong, known, common)


def test_labels_that_the_network_does_not_know(emoji_data, text_encoder):
    network = Evaluator(EvaluatorConfig(size=SIZE, widths=(8, 16), dim=16, text_dim=16)).eval()
    network.set_labels(["nothing"], torch.ones(1, 16))
    with pytest.raises(ValueError, match="does not know the labels"):
        evaluate(Drawing(noise), network, text_encoder, settings(emoji_data))


@pytest.fixture
def command(emoji_data, text_encoder, evaluator, tmp_path, monkeypatch):
    """The command line on the tiny networks, with a drawing in place of the generator."""
    from gen.generator import Generator

    save_component(evaluator, tmp_path / "evaluator")
    save_component(text_encoder, tmp_path / "text")
    monkeypatch.setattr(Generator, "from_pretrained", classmethod(lambda cls, model: Drawing(copying)))
    base = ["--data", str(emoji_data), "--evaluator", str(tmp_path / "evaluator"), "--text-encoder", str(tmp_path / "text")]
    return lambda *more: main([*base, "--out", str(tmp_path / "out"), *more])


def test_the_command_writes_report_and_sheet(command, tmp_path, capsys):
    assert command("--labels", "4", "--steps", "5") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["labels"] == 4 and report["settings"]["steps"] == 5 and report["top5"] == 1.0
    sheet = Image.open(tmp_path / "out" / "sheet.png")
    assert sheet.width > 2 * SIZE and sheet.height > 2 * SIZE
    assert "near copies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "lots"], "give common, all, or a number"),
        (["--repeats", "0"], "at least 1"),
        (["--evaluator", "/nowhere"], "/nowhere/config.json"),
        (["--data", "/nowhere"], "/nowhere/emoji-train.zip does not exist"),
    ],
)
def test_mistakes_end_in_a_sentence(command, capsys, more, message):
    assert command(*more) == 2
    error = capsys.readouterr().err
    assert error.startswith("fewstep: ") and message in error and "Traceback" not in error


def test_an_installation_without_evaluator_says_what_to_do(monkeypatch, tmp_path, capsys):
    from distill.networks.evaluator import network

    monkeypatch.setattr(network, "SHIPPED", tmp_path)
    assert module.main(["--labels", "1"]) == 2
    assert "Train one with" in capsys.readouterr().err
