"""Configs: strict YAML, overrides, and errors that name the culprit."""

from __future__ import annotations

import pytest

from distill import cache, train
from distill.config import ConfigError, ScheduleConfig, load_config, read_yaml
from distill.optim.schedule import lr_factor
from distill.registry import SOURCES
from gen.nn.registry import from_registry

MINIMAL = (
    "output: runs/x\nobjective: {type: diffusion}\nnetwork: {type: uvit}\ndata: {type: emoji}\nmax_steps: 10\nbatch_size: 4\n"
)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "c.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_values_and_overrides(write):
    config = load_config(write(MINIMAL), ["optimizer.lr=2e-4", "max_steps=7", "ema.decay=0.5", "network.dim=64"])
    assert config.optimizer.lr == 2e-4 and config.max_steps == 7 and config.ema.decay == 0.5
    assert config.network == {"type": "uvit", "dim": 64}


def test_exponent_numbers_are_numbers(write):
    assert read_yaml(write("a: 1e-4\nb: 1E5\nc: -2e+3\n")) == {"a": 1e-4, "b": 1e5, "c": -2e3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "max_stepz: 3\n", "did you mean 'max_steps'"),
        (MINIMAL + "lr: 1e-3\n", r"unknown key 'lr'; did you mean 'optimizer\.lr'"),
        (MINIMAL + "optimizer: {lrr: 1e-3}\n", r"unknown key 'optimizer\.lrr'; did you mean 'optimizer\.lr'"),
        (MINIMAL + "optimizer: {warmup: 3}\n", r"unknown key 'optimizer\.warmup'; did you mean 'schedule\.warmup'"),
        (MINIMAL + "steps: 3\n", r"did you mean 'evaluation\.steps' or 'max_steps'"),
        (MINIMAL + "prediction: x0\n", r"did you mean 'objective\.prediction'\.$"),
        (MINIMAL + "drop_caption: 0.1\n", r"did you mean 'data\.drop_caption'"),
        (MINIMAL + "routing: true\n", r"did you mean 'network\.routing'"),
        (MINIMAL + "roles: {net: {optimizer: {betaz: [0, 0]}}}\n", r"roles\.net: unknown key 'betaz'; did you mean 'betas'"),
        (MINIMAL + "zzzz: 1\n", r"^[^:]*: unknown key 'zzzz'; known keys: output, objective"),
        (MINIMAL + "max_steps: 11\n", "'max_steps' appears twice"),
        (MINIMAL + "optimizer: {lr: .nan}\n", "optimizer.lr"),
        (MINIMAL + "optimizer: {lr: -1}\n", "greater than 0"),
        (MINIMAL.replace("max_steps: 10", "max_steps: true"), "max_steps"),
        (MINIMAL.replace("max_steps: 10", "max_steps: 10.5"), "max_steps"),
        (MINIMAL.replace("max_steps: 10", "max_steps: 0"), "greater than 0"),
        (MINIMAL + "a: &x [1]\nb: *x\n", "aliases"),
        (MINIMAL + "a: !!python/object:os.system {}\n", "not valid YAML"),
        ("- 1\n", "a config is a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (MINIMAL + "seed: !!int ''\n", "the tag 'tag:yaml.org,2002:int' is not read"),
        (MINIMAL + "compile: !!bool x\n", "the tag 'tag:yaml.org,2002:bool' is not read"),
        (MINIMAL + "seed: !!float ''\n", "the tag"),
        (MINIMAL + "seed: !!timestamp x\n", "the tag"),
        (MINIMAL + "seed: !!binary x\n", "the tag"),
        (MINIMAL + "roles: !!set [a]\n", "the tag"),
        (MINIMAL + "roles: !own {a: 1}\n", "the tag '!own'"),
        (MINIMAL + "seed: 0x_\n", "not valid YAML"),
        (MINIMAL + f"seed: {'9' * 5000}\n", "not valid YAML"),
        (MINIMAL + "ema: 2020-13-45\n", "ema"),
        (MINIMAL + f"seed: {2**64}\n", "less than 18446744073709551616"),
        ("#" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_bad_file_is_one_sentence(write, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("override", "message"), [("max_steps", "key=value"), ("=3", "key=value"), ("seed.x=3", "is a value")])
def test_a_bad_override_is_one_sentence(write, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(MINIMAL + "seed: 1\n"), [override])


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("value", ["!!int ''", "!!bool x", "!!null x", "0x_", "9" * 5000, "!!python/name:os.system"])
def test_values_that_yaml_cannot_make_are_one_sentence_in_overrides_too(write, value):
    with pytest.raises(ConfigError, match=r"override .*not valid YAML") as error:
        load_config(write(MINIMAL), [f"seed={value}"])
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_key_and_a_date_is_text(write):
    assert read_yaml(write("\ufeffa: 2020-01-02\n")) == {"a": "2020-01-02"}


def test_learning_rate_rises_holds_and_falls():
    schedule = ScheduleConfig(warmup=4, cooldown=0.5, final=0.1)
    factors = [lr_factor(step, 20, schedule) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(factors[4:11]) == {1.0}
    assert factors[15] == pytest.approx(1 - 0.9 * 0.5)
    assert factors[20] == pytest.approx(0.1)


def test_unknown_keys_of_typed_sections_have_a_hint():
    with pytest.raises(ValueError, match=r"data source 'images' is not valid: unknown key 'foldr'; did you mean 'folder'\.$"):
        from_registry(SOURCES, "data source", {"type": "images", "folder": "x", "foldr": "y"})
    with pytest.raises(ValueError, match=r"unknown key 'buckets\.stepp'; did you mean 'buckets\.step'"):
        from_registry(SOURCES, "data source", {"type": "images", "folder": "x", "buckets": {"stepp": 64}})


@pytest.mark.parametrize("main", [train.main, cache.main])
def test_options_stand_in_any_order(write, capsys, main):
    """Overrides after an option, which argparse alone takes for unknown arguments."""
    path = write(MINIMAL)
    for arguments in ([str(path), "--dry-run", "max_stepz=3"], ["--dry-run", str(path), "max_stepz=3"]):
        given = arguments if main is train.main else [a for a in arguments if a != "--dry-run"]
        assert main(given) == 2 and "did you mean 'max_steps'" in capsys.readouterr().err
