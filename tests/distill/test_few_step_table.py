"""The table of few-step methods: every config has a row or a reason; settings that count steps keep their share."""

import re

import yaml

from distill.config import load_config
from tests.benchmarks.few_step import CONFIGS, COUNTS, NOT_FEW_STEP, markdown, methods, scaled


def test_every_config_of_distill_has_a_row_or_a_reason():
    assert sorted([*methods(), *NOT_FEW_STEP]) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_settings_that_count_steps_keep_their_share_of_the_run():
    for name in methods():
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        overrides = dict(override.split("=", 1) for override in scaled(config, 2 * config["max_steps"]))
        assert int(overrides.pop("max_steps")) == 2 * config["max_steps"]
        for key, text in overrides.items():
            group, setting = key.split(".")
            before, after = config[group][setting], yaml.safe_load(text)
            assert after == ([2 * value for value in before] if isinstance(before, list) else 2 * before), (name, key)


def test_no_setting_that_counts_steps_of_training_is_left_out():
    of_pictures = {"steps", "solver_steps", "denoising_steps", "bridge_steps", "flow_steps", "substeps"}
    for name in methods():
        objective = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["objective"]
        counted = (
            {key for key in objective if re.search(r"(steps|_from|_start|warmup)$", key)}
            - of_pictures
            - {"init_from", "made_from"}
        )
        assert {f"objective.{key}" for key in counted} <= set(COUNTS), name


def test_scaled_overrides_are_of_settings_that_exist():
    for name in methods():
        path = CONFIGS / f"{name}.yaml"
        load_config(path, scaled(yaml.safe_load(path.read_text()), 77))


def test_the_best_at_four_steps_is_the_first_row():
    def result(distance):
        row = {"frechet_distance": distance, "top5": 0.5, "recall": 0.5, "seconds_per_image": 0.1}
        return {"steps": 3, "seconds_per_step": 1.0, "judged": {"shipped": [row] * 3}}

    lines = markdown({"worse": result(60.0), "better": result(50.0)}).splitlines()
    assert lines[2].startswith("| `better` | 3 | 1.00 | 50.0 |") and lines[3].startswith("| `worse`")
    assert len({line.count("|") for line in lines}) == 1
