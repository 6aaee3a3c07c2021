"""What the eye sees first, and how well a model knows drawings that it was not trained on, against exact values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from distill.data.emoji.data import split_of
from distill.eval import metrics, unseen
from samplers.denoiser import Condition, NetworkDenoiser
from samplers.path import RectifiedFlow


def test_edges_of_a_known_picture():
    """Left half black, right half white, 8 x 8: one edge in each of the seven rows that count."""
    image = torch.full((1, 3, 8, 8), -1.0)
    image[..., 4:] = 1
    found = metrics.edges(image)
    assert found["edge_energy"] == pytest.approx(7 / 49) and found["strong_edges"] == pytest.approx(7 / 49)
    assert found["white_border"] == pytest.approx(14 / 28)
    assert metrics.edges(torch.ones(2, 3, 8, 8)) == {"edge_energy": 0, "strong_edges": 0, "white_border": 1}
    soft = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)  # steps of an eighth
    assert metrics.edges(soft)["strong_edges"] == 0
    assert metrics.edges(soft)["edge_energy"] == pytest.approx(1 / 64, rel=1e-6)
    speck = torch.ones(1, 3, 8, 8)
    speck[0, 1, 0, 0] = 252 / 127.5 - 1
    assert metrics.edges(speck)["white_border"] == pytest.approx(27 / 28)


class Remembering(torch.nn.Module):
    """Gives back the pictures it was told, exactly, and for every other the mean of all, zero."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, x, time, condition, context):
        found = torch.zeros_like(x)
        for row in range(len(x)):
            nearest = min(self.known, key=lambda picture: float((x[row] - 0.5 * picture).square().sum()))
            label = condition.label[row]
            found[row] = nearest if label >= 0 else 0
        return found


def model(known):
    denoiser = NetworkDenoiser(Remembering(known), RectifiedFlow(), "x0", "t")

    def encode(prompts):
        return Condition(label=torch.tensor([int(prompt) for prompt in prompts]))

    return SimpleNamespace(denoiser=denoiser, autoencoder=None, device=torch.device("cpu"), encode_prompt=encode,
                           config=SimpleNamespace(latent_scale=1.0))  # fmt: skip


def test_the_error_of_a_model_that_remembers():
    pictures = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 50
    generator = model(list(pictures))
    assert unseen.x0_error(generator, pictures, ["0"] * 6, 0.5, batch_size=4) == 0
    expected = float(pictures.square().flatten(1).mean(1).double().mean())
    assert unseen.x0_error(generator, pictures, ["-1"] * 6, 0.5) == pytest.approx(expected, rel=1e-6)


def test_the_splits_are_compared():
    records = [SimpleNamespace(file_name=f"images/pack/{number:X}.webp") for number in range(60)]
    pictures = torch.randn(60, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 50
    held = [split_of(record) == "held_out" for record in records]
    assert 0 < sum(held) < 30
    labels = ["-1" if out else "0" for out in held]  # what is held out is not known
    report = unseen.by_split(model(list(pictures)), records, pictures, labels)
    assert set(report) == {"t = 0.3", "t = 0.5", "t = 0.7"}
    expected = float(pictures[torch.tensor(held)].square().mean())
    assert report["t = 0.5"]["held_out"] == pytest.approx(expected, rel=1e-6) and report["t = 0.5"]["train"] == 0
    assert unseen.by_split(model([]), records[:1], pictures[:1], labels[:1]) == {}


def test_splits_are_compared_with_as_many_drawings_of_each(capsys):
    """Recognition and distance of each split's own drawings, against the same numbers by hand; and a column for each."""
    from distill.eval.model_scores import ScoreSettings, compare_splits, load_text_encoder, recognition
    from distill.eval.report import print_table
    from distill.networks.evaluator.network import load_evaluator

    records = [SimpleNamespace(file_name=f"images/pack/{number:X}.webp") for number in range(40)]
    evaluator, texts = load_evaluator(), load_text_encoder(ScoreSettings())
    real = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = [evaluator.labels[number] for number in range(40)]
    rows = unseen.split_rows(records)
    assert len(rows["train"]) == len(rows["held_out"]) == sum(split_of(record) == "held_out" for record in records) > 1
    assert not set(rows["train"]) & set(rows["held_out"]) and len(unseen.split_rows(records, 2)["train"]) == 2
    report = compare_splits(evaluator, texts, real[:3], records, real, labels)
    for split, chosen in rows.items():
        names = [labels[row] for row in chosen]
        assert report["top5 of real drawings"][split] == recognition(evaluator, texts, real[chosen], names, names)["top5"]
        features = [evaluator.features(images).float() for images in (real[:3], real[chosen])]
        assert report["frechet distance"][split] == pytest.approx(metrics.frechet_distance(*features), rel=1e-4)
    print_table({"top1": 0.5, "by_split": report}, "a model")
    lines = capsys.readouterr().out.splitlines()
    [header] = [line for line in lines if "held out" in line]
    assert "train" in header and any(line.count(f"{report['frechet distance']['train']:.4g}") for line in lines)
