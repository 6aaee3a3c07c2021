"""Forgetting: the closed form is the minimum that it claims to be, ESD's target its equation, and the command's file works."""

from __future__ import annotations

import pytest
import torch

from customization.algebra.factors import dense_of
from customization.algebra.svd import Keep
from customization.base.config import open_model
from customization.erasure.closed_form import ConceptEdit, aligned, edit_concepts, solve
from customization.erasure.measure import found_rate
from customization.erasure.prompts import ORDINARY, around, edit_of
from customization.erasure.readers import PromptRows, reading_layers
from customization.forget import main
from customization.methods.esd import ErasureConfig, ErasureObjective, erasing_target
from distill.types import Batch, Draws
from gen.adapters import read_adapter
from gen.generator import Generator
from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context
from samplers.path import RectifiedFlow
from tests.customization.adapters import normal

WEIGHT, ERASED, INSTEAD, KEPT = normal(1, 6, 5), normal(2, 3, 5), normal(3, 3, 5), normal(4, 4, 5)


def test_the_closed_form_is_the_minimum_of_its_sum_of_squares():
    keep, ridge = 0.3, 0.05
    up, down = solve(WEIGHT, ERASED, INSTEAD, KEPT, keep, ridge)
    moment = ERASED.T @ ERASED + keep * KEPT.T @ KEPT
    pull = ridge * moment.trace() / 5

    def loss(w):
        return (
            (ERASED @ w.T - INSTEAD @ WEIGHT.T).square().sum()
            + keep * (KEPT @ (w - WEIGHT).T).square().sum()
            + pull * (w - WEIGHT).square().sum()
        )

    edited = (WEIGHT + up @ down).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(edited), edited)
    assert float(gradient.abs().max()) < 1e-9
    stay = WEIGHT.clone().requires_grad_()
    assert float(torch.autograd.grad(loss(stay), stay)[0].abs().max()) > 0.1  # the loss is no constant


def test_limits_of_the_closed_form():
    up, down = solve(WEIGHT, ERASED, INSTEAD, KEPT, 0.0, 1e-12)  # nothing is kept: fewer rows than inputs are met exactly
    torch.testing.assert_close(ERASED @ (WEIGHT + up @ down).T, INSTEAD @ WEIGHT.T, rtol=0, atol=1e-7)
    up, down = solve(WEIGHT, ERASED, INSTEAD, KEPT[:2], 1e9, 1e-12)  # what is kept stays, in the limit of its weight
    assert float((KEPT[:2] @ (up @ down).T).abs().max()) < 1e-5 < float((ERASED @ (up @ down).T).abs().max())
    up, down = solve(WEIGHT, ERASED, ERASED, KEPT, 0.1, 0.1)
    assert not (up @ down).any()


def test_rows_are_spread_in_their_order():
    rows = torch.arange(4.0)[:, None]
    assert aligned(rows, 4).flatten().tolist() == [0, 1, 2, 3]
    assert aligned(rows, 2).flatten().tolist() == [0, 3] and aligned(rows, 1).flatten().tolist() == [0]
    assert aligned(rows[:2], 4).flatten().tolist() == [0, 0, 1, 1]


def test_prompts_around_a_concept():
    assert around("a clown")[:3] == ["a clown", "clown", "the clown"] and set(around("")) == {""}
    edit = edit_of(["a cat"], "a dog", ["a red cat on a mat"])
    assert "a cat" not in edit.kept and "a heart" in edit.kept and "a red cat on a mat" in edit.kept
    assert len(edit.erased) == len(edit.instead) == len(around("a cat"))
    assert not edit_of(["a cat"], ordinary=False).kept and len(set(ORDINARY)) == len(ORDINARY)
    with pytest.raises(ValueError, match="has no words"):
        edit_of([" ... "])
    with pytest.raises(ValueError, match="to be forgotten, and to be drawn"):
        edit_of(["a cat"], kept=["the cat"])
    with pytest.raises(ValueError, match="equally many"):
        ConceptEdit(("a",), (), ())


def test_an_edited_u_vit_reads_one_prompt_as_another(tiny_model):
    """Where text joins the sequence, the tokens that its blocks see are those of the other prompt, so all that follows is."""
    model = Generator.from_pretrained(tiny_model, "cpu", "float32")
    assert reading_layers(model.network) == ["text_embed"]
    adapter, reports = edit_concepts(model, ConceptEdit(("a red cat",), ("a blue dog",), ()), keep_weight=0.0, ridge=1e-9)
    assert [report.layer for report in reports] == ["denoiser.text_embed"] and reports[0].rank <= 5
    x, level = normal(5, 1, 4, 8, 8).float(), RectifiedFlow()(0.6)

    def said(prompt, adapters=None):
        context = Context() if adapters is None else Context(adapters=adapters)
        return model.denoiser(x, level, model.encode_prompt([prompt]), context).x0

    wanted, plain = said("a blue dog"), said("a red cat")
    model.load_adapter(adapter, name="forgotten")
    torch.testing.assert_close(said("a red cat", {"forgotten": 1.0}), wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(said("a red cat", {}), plain) and not torch.allclose(plain, wanted, atol=1e-2)
    short, _ = edit_concepts(model, ConceptEdit(("a red cat",), ("a blue dog",), ("the moon",)), keep=Keep(2))
    assert short.layers["denoiser.text_embed"].rank == 2


def test_cross_attention_is_edited_where_a_network_has_it(bridged):
    model = bridged("stable_diffusion")[1]
    layers = reading_layers(model.network)
    assert layers and all(layer.endswith(("attn2.to_k", "attn2.to_v")) for layer in layers)
    rows = PromptRows(model, [*layers, layers[0].replace("attn2.to_k", "attn1.to_k")])
    assert rows.layers == layers  # self-attention sees the picture, and is left out
    adapter, _ = edit_concepts(model, ConceptEdit(("a cat",), ("a dog",), ("a house",)))
    assert len(adapter.layers) == len(layers)
    model.load_adapter(adapter)


def test_what_cannot_be_edited(class_model, tiny_model):
    tiny = Generator.from_pretrained(tiny_model, "cpu", "float32")
    with pytest.raises(ValueError, match="reads no text"):
        PromptRows(Generator.from_pretrained(class_model, "cpu", "float32"), ["head"])
    with pytest.raises(ValueError, match="did you mean 'text_embed'"):
        reading_layers(tiny.network, ["text_embd"])
    with pytest.raises(ValueError, match="keep_weight is -1"):
        edit_concepts(tiny, ConceptEdit(("a",), ("b",), ()), keep_weight=-1)
    with pytest.raises(ValueError, match="ridge is 0; give a number above 0"):
        edit_concepts(tiny, ConceptEdit(("a",), ("b",), ()), ridge=0)


def test_esd_s_target_is_the_score_of_p_over_a_power():
    """e_n - eta (e_c - e_n) is the noise of p(x) [p(x) / p(x | c)]^eta: for Gaussians, that of another mean."""
    path, x = RectifiedFlow(), normal(6, 1, 1, 2, 2)
    level = path(0.7)

    def eps(mean):
        return Gaussian(path, torch.full((1, 2, 2), mean, dtype=torch.float64), 1.0)(x, level, Condition(), Context()).eps

    concept, plain, eta = 0.8, 0.1, 1.5
    target = erasing_target(eps(concept), eps(plain), eta)
    torch.testing.assert_close(target, eps(plain - eta * (concept - plain)), rtol=0, atol=1e-12)


def esd(model, **settings) -> ErasureObjective:
    config = ErasureConfig(model=str(model), layers="u", steps=3, **settings)
    return ErasureObjective(config, open_model(config, "cpu"))


def test_esd_trains_towards_the_untaught_models_own_target(tiny_model):
    one = esd(tiny_model, kept=("the moon",), keep_weight=0.0)
    batch, draws = Batch(index=torch.arange(2), captions=["a cat", "a red cat"]), Draws(3, torch.arange(2))
    network = one.roles["adapter"].network
    loss, logged = network(one.compute, batch, draws, 0)
    concept = one.named(list(batch.captions))
    x, level = one.untaught(one.own_picture, concept, draws)
    c, n = (one.predict(x, level, condition).raw for condition in (concept, concept.null()))
    # at the start the student is the model, so the distance is (1 + eta) |e_c - e_n|
    assert float(loss) == pytest.approx(float((2 * (c - n)).square().mean()), rel=1e-4)
    assert float(logged["loss_keep"]) == 0
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05)
    again = one.untaught(one.predict, x, level, concept).raw
    torch.testing.assert_close(again, c)  # what was taught is not in the target
    assert float(network(one.compute, batch, draws, 0)[1]["loss_keep"]) > 0
    made = one.to_adapter(network.named)
    name = next(iter(made.layers))
    torch.testing.assert_close(dense_of(made.layers[name]), torch.full_like(dense_of(made.layers[name]), 0.05))
    with pytest.raises(ValueError, match="no layers of cross-attention"):
        ErasureObjective(ErasureConfig(model=str(tiny_model)), open_model(ErasureConfig(model=str(tiny_model)), "cpu"))


def test_a_picture_is_found_by_its_own_text():
    def judge(images, prompts):
        return images.mean((1, 2, 3)) * (1 if prompts[0] == "light" else -1)

    images = torch.tensor([0.5, 0.2, -0.3])[:, None, None, None].expand(-1, 3, 2, 2)
    assert found_rate(judge, images, ["light", "dark"], 0) == pytest.approx(2 / 3)
    assert found_rate(judge, images, ["light", "dark"], 1) == pytest.approx(1 / 3)


def test_the_command(tiny_model, tmp_path, monkeypatch, capsys, fewstep):
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--device", "cpu", "--keep", "the moon", "--only-keep"]
    assert main(["a cat", "--to", "a dog", *common, "-o", "c.safetensors", "--check", "1", "--sheet", "s.png"]) == 0
    said = capsys.readouterr()
    assert said.out == "c.safetensors\n" and "found before" in said.err and (tmp_path / "s.png").is_file()
    assert read_adapter("c.safetensors").layers.keys() == {"denoiser.text_embed"}
    capsys.readouterr()
    for arguments, error in {
        ("a cat", "-o", "c.safetensors"): "c.safetensors exists",
        ("a cat", "-o", "x.pt"): "name that ends in .safetensors",
        ("a cat", "-o", "x.safetensors", "--steps", "3"): "--steps belongs to --method esd and ssgu",
        ("a cat", "-o", "x.safetensors", "--to", "d", "--method", "ssgu"): "--to: ssgu forgets",
        ("a cat", "-o", "x.safetensors", "--check", "1", "--judge", "brightness"): "it reads no prompts",
    }.items():
        assert main([*arguments, "--model", str(tiny_model)]) == 2
        assert error in capsys.readouterr().err
    code, out, _ = fewstep("forget", "a cat", *common, "-o", "d.safetensors", "-q")
    assert code == 0 and out == "d.safetensors\n"


@pytest.mark.slow
def test_the_command_trains(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--device", "cpu", "--keep", "the moon", "--only-keep"]
    more = ["objective.layers=u", "objective.steps=2", "objective.rank=2"]
    sets = [part for text in more for part in ("--set", text)]
    assert main(["a cat", *common, "--method", "esd", "--steps", "1", "-o", "e.safetensors", *sets]) == 0
    assert read_adapter("e.safetensors").layers
    assert main(["a cat", *common, "--method", "ssgu", "--steps", "3", "-o", "s.safetensors"]) == 0
    assert len(read_adapter("s.safetensors").layers) == 1
