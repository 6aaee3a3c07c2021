"""The benchmark of composed concepts: measures against brute force, pictures against the generator, a run that goes on."""

import json
import re

import pytest
import torch
from PIL import Image

from gen.adapters import Adapter, Delta, write_adapter
from gen.generator import Generator
from samplers.noise import fold
from tests.benchmarks.concepts import fidelity, mascot
from tests.benchmarks.concepts.__main__ import main
from tests.benchmarks.concepts.measure import Bench, Scorer, Wording
from tests.customization.kit import pictures
from tests.distill import evaluation

PROMPTS = ["a {subject}, {style}", "a cat, {style}", "a dog"]


def adapter(path, network, seed, word):
    random = torch.Generator().manual_seed(seed)
    layers = {
        f"denoiser.{name}": Delta(
            {
                "down": torch.randn(2, module.in_features, generator=random) / 4,
                "up": torch.randn(module.out_features, 2, generator=random) / 4,
            }
        )
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and "attn" in name
    }
    words = {word: {"text_encoder": torch.randn(1, 16, generator=random)}}
    return write_adapter(Adapter(path.stem, layers, words=words), path, "diffusers")


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    """Everything that a run reads."""
    from gen.models.components import save_component

    folder, kept = tmp_path_factory.mktemp("concepts"), evaluation.picture
    names = {"style": "<ink>", "subject": "<zib>", "other_style": "<ink>", "other_subject": "<zib>"}
    network = Generator.from_pretrained(tiny_model, "cpu").network
    for seed, (name, word) in enumerate(names.items()):
        adapter(folder / f"{name}.safetensors", network, seed, word)
    evaluation.archive(folder / "others.zip", evaluation.VENDORS[:1])
    try:  # a style: dark stripes over what others draw
        evaluation.picture = lambda label, vendor: kept(label, vendor).clone().index_fill_(1, torch.arange(0, 32, 3), 0)
        evaluation.archive(folder / "style.zip", ("striped",))
    finally:
        evaluation.picture = kept
    mascot.write(folder / "zib", {"held_out": 8})
    pictures(folder / "zib" / "look_alikes", 12)
    save_component(evaluation.knowing_evaluator(), folder / "judge")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def arguments(world, model, out, *more):
    return [
        *(str(world / f"{name}.safetensors") for name in ("style", "subject")), "--model", str(model), "--out", str(out),
        "--style-pictures", str(world / "style.zip"), "--other-styles", str(world / "others.zip"), "--judge",
        str(world / "judge"), "--text-encoder", str(model / "text_encoder"), "--subject-pictures", str(world / "zib/held_out"),
        "--look-alikes", str(world / "zib/look_alikes"), "--style-phrase", "<ink>", "--subject-plain", "heart", "--prompts",
        str(world / "prompts.txt"), "--steps", "2", *more,
    ]  # fmt: skip


def test_a_run_goes_on_where_it_was(world, tiny_model, tmp_path, capsys):
    pair = ("--orthogonal", str(world / "other_style.safetensors"), str(world / "other_subject.safetensors"))
    every = arguments(world, tiny_model, tmp_path, "--samples", "2", *pair)

    def made(*more):
        assert main([*every, *more]) == 0
        return int(re.search(r"(\d+) pictures made", capsys.readouterr().out)[1])

    assert made("--methods", "merge", "switch", "orthogonal merge") == 3 * 3 * 2
    first = json.loads((tmp_path / "table.json").read_text())
    assert [row["method"] for row in first["rows"]] == ["merge", "switch", "orthogonal merge"]
    assert made("--methods", "merge", "switch", "orthogonal merge") == 0
    assert json.loads((tmp_path / "table.json").read_text()) == first
    assert made("--methods", "merge", "--samples", "3") == 3
    assert made("--methods", "merge", "--weight", "merge=0.5,1") == 6
    assert made() == 8 * 3 * 2  # the other methods
    rows = {row["method"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert len(rows) == 11 and rows["merge"]["prompts"] == first["rows"][0]["prompts"]
    assert rows["orthogonal merge"]["prompts"] != rows["merge"]["prompts"] != rows["composite"]["prompts"]
    assert [rows[name]["evaluations"] for name in ("merge", "composite", "contrast")] == [4, 8, 12]  # with guidance
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in text for name in rows) and "AUC" in text
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size[0] > 3 * 100 and page.size[1] > 11 * 100
    assert main([*every, "--weight", "merge=1"]) == 2 and "METHOD=STYLE,SUBJECT" in capsys.readouterr().err
    assert (
        main([*every, "--style-phrase", "<pen>"]) == 2
        and "has not learned '<pen>'; its words: <ink>" in capsys.readouterr().err
    )
    assert main([*every[:-3], "--methods", "orthogonal merge"]) == 2 and "--orthogonal" in capsys.readouterr().err


def test_pictures_are_the_generators(world, tiny_model, tmp_path):
    """Each method is what `Generator` makes of it, its words only where its adapter acts."""
    files = {"plain": {name: world / f"{name}.safetensors" for name in ("style", "subject")}}
    bench = Bench(Generator.from_pretrained(tiny_model, "cpu"), files, Wording("<ink>", "<zib>", "heart"), tmp_path, 2)
    seeds = [fold(0, PROMPTS[0], i) % 2**31 for i in range(2)]
    own = Generator.from_pretrained(tiny_model, "cpu")
    own.load_adapter(files["plain"]["style"], name="style")
    own.load_adapter(files["plain"]["subject"], name="subject")
    for method, prompt, weights, how in (
        ("no adapter", "a heart", {}, None),
        ("style alone", "a heart, <ink>", {"style": 1.0}, None),
        ("composite", "a <zib>, <ink>", {"style": 1.0, "subject": 1.0}, "composite"),
    ):
        found = bench.pictures(method, PROMPTS[0], 2).images
        own.set_adapters(weights)
        images = own([prompt] * 2, seeds=seeds, num_inference_steps=2, composition=how, output_type="pt", progress=False).images
        assert torch.equal(found, (images * 255).round() / 255), method


def test_likeness_against_brute_force():
    """Two normal clouds: the direction is Fisher's, and the numbers about held-out pictures are what counting gives."""
    random = torch.Generator().manual_seed(0)
    shape = torch.randn(5, 5, generator=random, dtype=torch.float64)
    own, others = (torch.randn(4000, 5, generator=random, dtype=torch.float64) @ shape + shift for shift in (0.8, 0.0))
    found = fidelity.fit(lambda judge, x: x, None, own, others)
    fisher = torch.linalg.solve(shape.T @ shape, torch.full((5,), 0.8, dtype=torch.float64))
    assert torch.cosine_similarity(found.weight, fisher, dim=0) > 0.98
    first, second = found(own[2000:]), found(others[2000:])
    assert torch.allclose(torch.stack([first.mean(), second.mean()]), torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-9)
    wins = (first[:, None] > second[None]).double().mean().item()
    assert found.ceiling["auc"] == pytest.approx(wins, abs=1e-9)
    assert found.ceiling["own recognised"] == (first > 0.5).double().mean().item()
    assert found.ceiling["others taken for it"] == (second > 0.5).double().mean().item()
    with pytest.raises(ValueError, match="four pictures"):
        fidelity.fit(lambda judge, x: x, None, own[:3], others)


def test_scores_of_known_pictures():
    judge = evaluation.knowing_evaluator()
    encoder = evaluation.tiny_text_encoder()
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    constant = fidelity.Likeness(lambda judge, x: x.mean((1, 2, 3))[:, None].double(), judge, zero, one, {})
    score = Scorer(judge, encoder, constant, constant, Wording("<ink>", "<zib>", "heart"))
    label = evaluation.LABELS[3]
    pictures = torch.stack([evaluation.picture(name, "noto") for name in (label, evaluation.LABELS[0])]).float() / 255
    found = score(f"a {label}, {{style}}", pictures)
    assert found["top-5"][0] == 1 and found.keys() == {"style", "subject, not asked", "alignment", "top-5"}
    text = judge.embed_texts(encoder.pooled([f"a {label}"]))
    assert found["alignment"] == pytest.approx((judge.embed(pictures * 2 - 1) @ text.T)[:, 0].tolist(), abs=1e-6)
    blue, white = torch.tensor([80, 140, 230]) / 255, torch.ones(3)
    plain = torch.stack([blue, white])[:, :, None, None].repeat(1, 1, 32, 32)
    found = score("a {subject} on a blue background, {style}", plain)
    assert found["background"] == [1, 0] and "top-5" not in found
    assert found["both"] == [0, 1]  # means of 0.2 and 1


def test_the_mascot(tmp_path):
    mascot.write(tmp_path, {"train": 10, "held_out": 2})
    captions = [path.read_text().strip() for path in sorted((tmp_path / "train").glob("*.txt"))]
    assert len(captions) == 10 and captions[0] == "a <zib>" and captions[1] == "a <zib> on a blue background"
    with Image.open(tmp_path / "train/001.png") as picture:
        assert picture.size == (128, 128) and picture.getpixel((0, 0)) == (80, 140, 230)
        taught = torch.tensor(list(picture.convert("RGB").getdata()))
    dark = lambda pixels: (pixels.amax(1) < 50).double().mean()  # noqa: E731
    with Image.open(tmp_path / "held_out/001.png") as picture:
        outlined = torch.tensor(list(picture.convert("RGB").getdata()))
    assert dark(outlined) > 3 * dark(taught)
    looks = mascot.looks("look_alikes", 16)
    assert looks == mascot.looks("look_alikes", 16) and {look.outlined for look in looks} == {False, True}
    plain = mascot.Look()
    assert all((look.body, look.colour, look.eyes, look.limbs) != (plain.body, plain.colour, plain.eyes, plain.limbs)
               for look in looks)  # fmt: skip
