"""Rewards by name: against transformers' own models on small random ones, and in the places that take any of them.

Sources: arXiv 2103.00020 (CLIP), 2305.01569 (PickScore), 2306.09341 (HPS v2), 2304.05977 (ImageReward).
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import distill.networks.evaluator  # noqa: F401  (makes its reward known)
from gen import rewards
from gen.rewards import REWARDS, get_reward, hps3, register_reward, reward_info
from gen.rewards.blip import SCORE_DEVIATION, SCORE_MEAN
from gen.rewards.clip import DEVIATION, MEAN
from gen.rewards.hps3 import CHAT, REWARD_TOKEN, picture_size
from gen.rewards.pixels import ColourReward
from gen.tasks.energies import energy_info, get_energy
from gen.tasks.energy_guidance.cli import energy_of
from samplers.denoiser import Condition
from samplers.search import reno
from tests.gen.pipelines import LETTERS, clip_tokenizer
from tests.gen.pipelines_chat import QwenProcessor, qwen2_vl, qwen_tokenizer

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PROMPTS = ["a red cat", "a dog"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def short():
    """HPS v3 with little to read, which a test can afford."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hps3, "INSTRUCTION", "as {prompt}: " + REWARD_TOKEN + " end")
        patch.setattr(hps3, "TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What each reward needs: small random models of transformers, and heads."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("rewards")
    ends = {"bos_token_id": len(LETTERS) * 2, "eos_token_id": len(LETTERS) * 2 + 1, "pad_token_id": 1}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    text = {**SIZES, **ends, "vocab_size": len(LETTERS) * 2 + 2, "projection_dim": 12}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**vision, "projection_dim": 12}, projection_dim=12)
    ).eval().save_pretrained(root / "clip")
    clip_tokenizer().save_pretrained(root / "clip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog"]
    (root / "vocab.txt").write_text("\n".join(words))
    text = {**SIZES, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    text |= {"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).eval().save_pretrained(root / "blip")
    BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "blip")
    g = torch.Generator().manual_seed(2)
    for name, width in (("clip_head", 12), ("blip_head", 16)):
        layers = {"layers.0.weight": (4, width), "layers.0.bias": (4,), "layers.2.weight": (1, 4), "layers.2.bias": (1,)}
        save_file({key: torch.randn(*shape, generator=g) for key, shape in layers.items()}, root / f"{name}.safetensors")
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    tokenizer.save_pretrained(root / "qwen")
    qwen2_vl(tokenizer).save_pretrained(root / "qwen")
    layers = {"0.weight": (8, 16), "0.bias": (8,), "3.weight": (6, 8), "3.bias": (6,), "5.weight": (2, 6), "5.bias": (2,)}
    save_file(
        {f"rm_head.{key}": torch.randn(*shape, generator=g) for key, shape in layers.items()}, root / "qwen_head.safetensors"
    )
    clip = {"model": str(root / "clip")}
    return {
        "brightness": {},
        "colour": {"colour": "red"},
        "clip": clip,
        "pickscore": clip,
        "hps": clip,
        "aesthetic": {**clip, "head": str(root / "clip_head.safetensors")},
        "image_reward": {"model": str(root / "blip"), "head": str(root / "blip_head.safetensors")},
        "hpsv3": {"model": str(root / "qwen"), "head": str(root / "qwen_head.safetensors")},
        "evaluator": {},
    }


@pytest.fixture
def table():
    before = dict(rewards._registered)
    yield
    rewards._registered.clear()
    rewards._registered.update(before)


def test_every_reward_is_of_each_picture_alone_and_differentiable(options):
    assert set(options) == set(REWARDS)
    for name, given in options.items():
        reward, images = get_reward(name, **given), IMAGES.clone().requires_grad_()
        found = reward(images, PROMPTS)
        slope = torch.autograd.grad(found.sum(), images)[0]
        assert found.shape == (2,) and bool((slope.flatten(1).norm(dim=1) > 0).all()), name
        alone = torch.cat([reward(IMAGES[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(alone, found.detach(), rtol=1e-4, atol=1e-5)
        other = reward(IMAGES, PROMPTS[::-1])
        assert torch.equal(other, found.detach()) != reward_info(name).reads_prompts, name
        if reward_info(name).reads_prompts:
            with pytest.raises(ValueError, match=f"The reward '{name}' judges pictures by their prompts"):
                reward(IMAGES, ["a cat", ""])


def test_the_relatives_of_clip_are_transformers_cosine_times_their_scale(options):
    from transformers import CLIPModel, CLIPTokenizer

    folder = options["clip"]["model"]
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = (IMAGES - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    cosine = logits / model.logit_scale.exp().item()
    for name, expected in (("clip", logits), ("pickscore", logits), ("hps", cosine)):
        torch.testing.assert_close(get_reward(name, model=folder)(IMAGES, PROMPTS), expected, rtol=0, atol=2e-5)
    fixed = get_reward("clip", model=folder, scale=3.0)(IMAGES, PROMPTS)
    torch.testing.assert_close(fixed, 3 * cosine, rtol=0, atol=2e-6)


def test_image_reward_is_its_head_on_the_first_token_beside_the_picture(options):
    from safetensors.torch import load_file
    from transformers import BertTokenizer, BlipForImageTextRetrieval

    folder, head = options["image_reward"].values()
    model, tokenizer = BlipForImageTextRetrieval.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    pixels = (IMAGES - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    score, layers = seen.question_embeds[:, 0], load_file(head)
    for number in (0, 2):
        score = score @ layers[f"layers.{number}.weight"].T + layers[f"layers.{number}.bias"]
    expected = (score[:, 0] - SCORE_MEAN) / SCORE_DEVIATION
    found = get_reward("image_reward", model=folder, head=head)(IMAGES, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hps_v3_is_its_head_on_the_reward_token_as_the_processor_writes_it(options):
    """transformers' own processing of pictures of several shapes and of text; ReLU between the head's layers; the first number.
    Prompts of other lengths beside it do not matter (the loop over all rewards)."""
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    folder, head = options["hpsv3"].values()
    model, tokenizer = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor, layers = QwenProcessor(tokenizer, model.config.vision_config), load_file(head)
    side = 8 * 4  # 16 tokens of two by two patches of four pixels
    processor.image_processor.size = {"shortest_edge": side**2, "longest_edge": side**2}
    rough = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(4)).mul(255).round()
    picture = Image.fromarray(rough[0].permute(1, 2, 0).byte().numpy())
    text = CHAT.format(picture="<|image_pad|>", text=hps3.INSTRUCTION.format(prompt="a red cat"))
    read = processor([text], [picture], padding=True, return_tensors="pt")
    with torch.no_grad():
        kinds = (read["input_ids"] == model.config.image_token_id).int()
        last = model.model(**read, mm_token_type_ids=kinds).last_hidden_state[0]
        score = last[read["input_ids"][0].tolist().index(tokenizer.convert_tokens_to_ids(REWARD_TOKEN))]
        for number in (0, 3, 5):
            score = layers[f"rm_head.{number}.weight"] @ score + layers[f"rm_head.{number}.bias"]
            score = score.relu() if number < 5 else score
    found = get_reward("hpsv3", model=folder, head=head)(rough / 255, ["a red cat"])
    torch.testing.assert_close(found, score[:1], rtol=1e-4, atol=1e-4)
    for hostile in (REWARD_TOKEN, "<|image_pad|>"):  # as words, which move no place and stand for no picture
        one, other = (f"a cat {text}" for text in (hostile, hostile.replace("<|", "< |")))
        both = [get_reward("hpsv3", model=folder, head=head)(rough / 255, [text]) for text in (one, other)]
        torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(128, 128), (32, 32), (200, 100), (1000, 300), (60, 500)])
def test_hps_v3_sees_pictures_at_the_size_of_transformers(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert picture_size(*size, 8) == smart_resize(*size, 8, hps3.TOKENS * 64, hps3.TOKENS * 64)


def test_pixels():
    grey, red, cyan = (
        torch.tensor(c).float()[None, :, None, None].expand(1, 3, 8, 8) for c in ([0.5] * 3, [1, 0, 0], [0, 1, 1])
    )
    assert get_reward("brightness")(torch.cat([grey, red]), ["", ""]).tolist() == pytest.approx([0.5, 0.299])
    towards = ColourReward("red")(torch.cat([grey, red, cyan]), ["", "", ""]).tolist()
    chroma = ((-0.299 / 1.772) ** 2 + 0.5**2) ** 0.5  # of BT.601: Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402
    assert towards == pytest.approx([0, chroma, -chroma], abs=1e-6)
    for colour in ("grey", "white"):
        with pytest.raises(ValueError, match="which has no hue"):
            ColourReward(colour)
    with pytest.raises(ValueError, match="Unknown colour 'rde'"):
        get_reward("colour", colour="rde")


def test_a_reward_guides_as_an_energy(tiny, options):
    """`reward:NAME` is weight * reward for the pictures' own prompts; a call takes it, and recipes hold it where they may."""
    for name, given in options.items():
        info = energy_info(f"reward:{name}")
        energy = get_energy(info, **given, weight=2.0).for_prompts(PROMPTS)
        torch.testing.assert_close(energy(IMAGES, Condition()), 2 * get_reward(name, **given)(IMAGES, PROMPTS))
        assert info.external == (name in ("clip", "pickscore", "hps", "hpsv3", "aesthetic", "image_reward"))
        assert get_energy(info, **given).weight == reward_info(name).scale
    call = {"num_inference_steps": 3, "seed": 1, "output_type": "pt", "progress": False}
    plain = tiny("a cat", **call).images
    guided = tiny("a cat", guide="reward:brightness", guide_strength=2.0, **call)
    bright = get_reward("brightness")
    assert (bright(guided.images, [""]) > bright(plain, [""])).all()
    recipe = guided.recipes[0]
    assert recipe.guide.energy == "reward:brightness" and recipe.unrecorded == ()
    assert torch.equal(tiny.replay(recipe, "pt", progress=False).images, guided.images)
    assert energy_of("reward:brightness") == "reward:brightness"


def test_the_search_for_noise_takes_any_reward():
    """On pictures that are the noise itself, ReNO climbs to brighter ones."""
    noise, reward = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), get_reward("brightness")
    found = reno(lambda z: z / 8 + 0.5, lambda images: reward(images, PROMPTS), noise, iterations=5)
    assert (found.rewards > found.tried[0]).all()


def test_rewards_of_the_users_own(table):
    register_reward("contrast", lambda power=1.0: lambda images, prompts: images.std((1, 2, 3)) ** power, "contrast", ["power"])
    torch.testing.assert_close(get_reward("contrast", power=2.0)(IMAGES, PROMPTS), IMAGES.std((1, 2, 3)) ** 2)
    assert energy_info("reward:contrast").external
    with pytest.raises(ValueError, match="The reward 'contrast' exists already"):
        register_reward("contrast", lambda: None, "")
    with pytest.raises(ValueError, match="did you mean 'brightness'"):
        get_reward("brightnes")
    with pytest.raises(ValueError, match="The reward 'colour' needs colour"):
        get_reward("colour")
    with pytest.raises(ValueError, match="has no option 'power'"):
        energy = energy_info("reward:brightness")
        get_energy(energy, power=1.0)
