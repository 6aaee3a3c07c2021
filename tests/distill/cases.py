"""A tiny training config for every registered objective: what the tests that run all of them read.

"MODEL" stands for a class-conditional model folder (4 x 4 x 2), "DECODED" for the same with an autoencoder, "TEXT" for a text
encoder's. data: labels (latents with
labels) or pictures (labelled, captioned). New objectives add a line to CASES.
"""

from __future__ import annotations

from typing import Any

SIZES = {"size": 4, "patch": 2, "channels": 2, "dim": 16, "depth": 3, "heads": 2, "num_classes": 3}
COMMON = {
    "max_steps": 4,
    "batch_size": 2,
    "accumulate": 1,
    "checkpoint_every": 100,
    "log_every": 2,
    "device": "cpu",
    "precision": "fp32",
    "schedule": {"warmup": 1, "cooldown": 0.5},
    "optimizer": {"type": "adamw", "lr": 1e-3},
    "ema": {"decay": 0.9},
}


def case(objective: dict[str, Any], network: dict[str, Any], data: str, **changes: Any) -> dict[str, Any]:
    return {**COMMON, "objective": objective, "network": network, "data": {"type": data}, **changes}


def student(type: str, *, teacher: dict[str, Any] | None = None, scalars: tuple[str, ...] = (), **options: Any):
    """A case of a method whose student is the teacher's DiT."""
    objective = {"type": type, "teacher": {"model": "MODEL", "guidance_scale": 2.0, **(teacher or {})}, **options}
    return case(objective, {"type": "dit", **SIZES, "scalars": list(scalars)}, "labels")


def policy(type: str, **options: Any) -> dict[str, Any]:
    """A case of a method that tunes its teacher, without guidance, which would ask for no label in every call. Four samples, so
    that each of two processes has two."""
    teacher = {"model": "DECODED", "guidance_scale": 1.0, "steps": 4}
    return {**student(type, teacher=teacher, **options), "batch_size": 4}


BRIGHT = [{"type": "brightness", "weight": 100.0}]  # whose gradients a random decoder leaves small

AUTOENCODER = {
    "type": "autoencoder", "factor": 4, "channels": 4, "encoder_widths": [8], "encoder_blocks": [1], "decoder_widths": [8],
    "decoder_blocks": [1],
}  # fmt: skip

TRANSLATION = {
    "teacher": {"model": "DECODED"},
    "there": {"name": "icon", "reads": "lines"},
    "back": {"name": "outline"},
    "made_from": "edges",
    "rank": 2,
    "coder_rank": 2,
}

CASES: dict[str, dict[str, Any]] = {
    "diffusion": case({"type": "diffusion", "prediction": "x0", "loss": "flow"}, {"type": "uvit", **SIZES}, "labels"),
    "upsampler": case(
        {"type": "upsampler", "prediction": "x0", "loss": "flow", "crop": 8},
        {
            "type": "upsampler",
            "size": 16,
            "factor": 4,
            "fold": 2,
            "backbone": {
                "type": "adm",
                "dim": 8,
                "multipliers": [1, 2],
                "blocks": 1,
                "groups": 4,
                "num_classes": 3,
                "null_label": True,
            },
        },
        "pictures",
    ),
    "error_propagation": case(
        {"type": "error_propagation", "levels": 4, "reach": 2, "measured": 4}, {"type": "dit", **SIZES}, "labels", batch_size=4
    ),
    "autoencoder": case({"type": "autoencoder"}, AUTOENCODER, "pictures"),
    "decoder": case(
        {
            "type": "decoder",
            "teacher": {"model": "DECODED", "guidance_scale": [1.0, 3.0]},
            "student": {"model": "MODEL"},
            "predicted": 0.3,
            "student_predicted": 0.3,
            "sampled": 0.4,
            "student_steps": [2],
        },
        {**AUTOENCODER, "channels": 2},
        "pictures",
    ),
    "transparent": case(
        {
            "type": "transparent",
            "teacher": {"model": "DECODED", "guidance_scale": [1.0, 3.0]},
            "direct": 0.3,
            "predicted": 0.4,
            "small_steps": 1,
        },
        {"type": "transparency", "widths": [8, 8], "blocks": [1, 1], "latent_channels": 2, "factor": 4, "refine_width": 4},
        "layered",
    ),
    "text": case(
        {"type": "text", "teacher": "TEXT", "layers": [0]},
        {"type": "text_encoder", "vocab_size": 16, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "max_tokens": 8},
        "pictures",
    ),
    "evaluator": case(
        {"type": "evaluator", "text_encoder": "TEXT", "held_out": None},
        {"type": "evaluator", "size": 16, "widths": [8, 8], "dim": 16, "text_dim": 16},
        "pictures",
    ),
    "classifier": case(
        {"type": "classifier"},
        {
            "type": "noisy_classifier",
            "channels": 2,
            "num_classes": 3,
            "widths": [8, 8],
            "patch": 1,
            "groups": 4,
            "time_dim": 16,
        },
        "labels",
    ),
    "progressive": student("progressive", teacher={"steps": 8}, steps=2, stage_steps=1, last_stage_steps=2),
    "guidance": student("guidance", teacher={"guidance_scale": [1.0, 5.0]}, scalars=("guidance",), embed_guidance=True),
    "tract": student("tract", teacher={"steps": 8}, steps=2, counts=[4, 2], stage_steps=2),
    "multistep_consistency": student("multistep_consistency", steps=2, substeps=[4, 8], anneal=2),
    "phased_consistency": student(
        "phased_consistency", teacher={"steps": 6}, steps=2, lora={"rank": 2}, adversarial_weight=0.1
    ),
    "latent_consistency": student(
        "latent_consistency",
        teacher={"steps": 6, "guidance_scale": [2.0, 5.0]},
        scalars=("guidance",),
        steps=2,
        embed_guidance=True,
    ),
    "adversarial_consistency": student(
        "adversarial_consistency",
        teacher={"steps": 6, "guidance_scale": [2.0, 5.0]},
        scalars=("guidance",),
        steps=2,
        embed_guidance=True,
    ),
    "adversarial_continuous": student("adversarial_continuous", warmup=3, share=0.5),
    "adversarial_diffusion": student("adversarial_diffusion", teacher={"model": "DECODED"}, steps=2, hidden=4, penalty=1e-3),
    "denoising_diffusion_gan": student(
        "denoising_diffusion_gan", teacher={"guidance_scale": 1.0}, scalars=("latent",), steps=2, penalty_every=1, widths=[8, 8]
    ),
    "ufogen": student("ufogen", teacher={"guidance_scale": 1.0}, cuts=3),
    "yoso": student("yoso", teacher={"guidance_scale": 1.0}, noisiest_share=0.3),
    "nitro_fusion": student("nitro_fusion", teacher={"steps": 2}, members=2, hidden=4, refresh=0.1),
    "distribution_matching": student(
        "distribution_matching",
        teacher={"steps": 6, "guidance_scale": [2.0, 5.0]},
        scalars=("guidance",),
        steps=3,
        embed_guidance=True,
        critic_warmup=1,
    ),
    "sid": student(
        "sid",
        scalars=(),
        steps=2,
        critic_guidance=1.5,
        training_guidance=1.5,
        adversarial_weight=1e-2,
        discriminator_weight=1e-2,
        critic_time={"type": "karras"},
        critic_warmup=1,
    ),
    "decoupled_dmd": student("decoupled_dmd", steps=3, critic_warmup=1),
    "f_distill": student("f_distill", steps=2, divergence="js", bins=4),
    "dmdr": student(
        "dmdr",
        teacher={"model": "DECODED"},
        steps=2,
        critic_lora={"rank": 2},
        reward={"type": "brightness", "weight": 0.1},
        reward_from=1,
        dynamic_steps=3,
    ),
    "swiftbrush": student(
        "swiftbrush",
        teacher={"model": "DECODED"},
        critic_lora={"rank": 2},
        reward={"type": "brightness", "weight": 0.1},
        enough=0.9,
        reward_steps=6,
    ),
    "drifting": {  # of which samples of one condition are compared: without labels, all
        **student("drifting", steps=1, representations=["teacher", "latents"], drop_label=1.0),
        "batch_size": 4,
    },
    "sliced_mmd_flow": student("sliced_mmd_flow", steps=1, flow_steps=2, momentum=0.5, slices=4),
    "frechet": student(
        "frechet",
        teacher={"model": "DECODED", "steps": 6, "guidance_scale": [2.0, 5.0]},
        scalars=("guidance",),
        steps=2,
        embed_guidance=True,
        representations=["evaluator", "teacher"],
        population=2,
        reference=8,
        refresh=1,
    ),
    "trajectory_consistency": student("trajectory_consistency", teacher={"steps": 6}, steps=2),
    "consistency_trajectory": student(
        "consistency_trajectory", scalars=("target_time",), levels=6, solver_steps=3, balance=True, adversarial_start=1
    ),
    "consistency_distillation": student("consistency_distillation", teacher={"solver": "heun"}, levels=6),
    "consistency_training": student("consistency_training", total_steps=4, last_levels=10),
    "improved_consistency": student("improved_consistency", total_steps=4, first_levels=2, last_levels=8),
    "easy_consistency": student("easy_consistency", stage_steps=1),
    "continuous_consistency": student("continuous_consistency", warmup=3, share=0.5),
    "regularized_consistency": student(
        "regularized_consistency",
        teacher={"guidance_scale": [2.0, 5.0]},
        scalars=("guidance",),
        embed_guidance=True,
        regularize_from=1,
        warmup=3,
        simulate=2,
    ),
    "align_your_flow": student(
        "align_your_flow",
        teacher={"guidance_scale": [1.0, 3.0]},
        scalars=("target_time", "guidance"),
        embed_guidance=True,
        form="lagrangian",
        weak="MODEL",
        warmup=3,
    ),
    "truncated_consistency": student("truncated_consistency", teacher={"guidance_scale": 1.0}, boundary_share=0.5),
    "single_trajectory": student(
        "single_trajectory", teacher={"steps": 6}, steps=2, lora={"rank": 2}, slots=4, bank_share=0.9, reach=0.5
    ),
    "multistep_latent_consistency": student(
        "multistep_latent_consistency",
        teacher={"steps": 8},
        segments=[4, 2],
        segment_steps=1,
        milestones_from=2,
        denoising_steps=2,
        simulate=2,
        bridge_steps=2,
        lora={"rank": 2},
    ),
    "twin_flow": student("twin_flow", scalars=("target_time",)),
    "control": case(
        {"type": "control", "teacher": {"model": "DECODED"}, "kinds": ["edges", "segments"], "depth": 2, "width": 8},
        {"type": "dit_control", **SIZES, "num_classes": 0, "depth": 2, "factor": 4, "kinds": ["edges", "segments"], "width": 8},
        "pictures",
    ),
    "positional_query": case(
        {"type": "positional_query", "prediction": "x0", "loss": "flow"},
        {
            "type": "positional_query",
            "backbone": "uvit",
            "sizes": {"size": 16, "patch": 4, "channels": 3, "dim": 16, "depth": 2, "heads": 2, "num_classes": 3},
        },
        "pictures",
    ),
    "joint": case(
        {"type": "joint", "teacher": {"model": "DECODED"}, "map_rank": 0},
        {"type": "joint_adapter", "layers": 3, "dim": 16, "rank": 2, "map_rank": 0},
        "pictures",
    ),
    "reference": case(
        {"type": "reference", "teacher": {"model": "DECODED"}, "depth": 1, "drop_reference": 0.3},
        {
            "type": "reference_encoder",
            "channels": 2,
            "patch": 2,
            "size": 4,
            "dim": 16,
            "heads": 2,
            "depth": 1,
            "layers": 3,
            "attention": "joint",
            "layer_dim": 16,
            "layer_heads": 2,
        },
        "pictures",
    ),
    "pix2pix_turbo": case(
        {
            **TRANSLATION,
            "type": "pix2pix_turbo",
            "full": ["patch_embed"],
            "stochastic": 0.5,
            "gradient": 0.5,
            "l1": 0.5,
            "perceptual": 0.1,
            "penalty": 0.1,
            "reward": {"type": "brightness", "weight": 0.1},
        },
        {},
        "pictures",
    ),
    "cycle_gan_turbo": case(
        {
            **TRANSLATION,
            "type": "cycle_gan_turbo",
            "cycle_perceptual": 0.1,
            "identity_perceptual": 0.1,
            "contrastive": {"patches": 8, "dim": 8},
        },
        {},
        "pictures",
    ),
    "collaborate": case(
        {"type": "collaborate", "models": [{"model": "MODEL", "reads": "label"}, {"model": "MODEL", "reads": "nothing"}]},
        {"type": "influence", "channels": 2, "dim": 8, "depth": 1, "text_dims": [0, 0], "num_classes": [3, 0]},
        "labels",
    ),
    "mean_flow": student("mean_flow", scalars=("target_time",), omega=0.8, kappa=0.5, different=0.5),
    "alpha_flow": student("alpha_flow", scalars=("target_time",), anneal=[0, 4], temperature=3.0, different=0.5),
    "improved_mean_flow": student(
        "improved_mean_flow",
        teacher={"guidance_scale": [1.0, 8.0]},
        scalars=("target_time", "guidance"),
        embed_guidance=True,
        different=0.5,
    ),
    "moment_matching": student("moment_matching", scalars=("target_time",), particles=2),
    "pi_flow": case(
        {
            "type": "pi_flow",
            "teacher": {"model": "MODEL", "guidance_scale": 2.0},
            "steps": 2,
            "components": 2,
            "substeps": 8,
            "window": 2,
            "mixing_steps": 3,
        },
        {},
        "labels",
    ),
    "multimarginal": case(
        {"type": "multimarginal", "preview_steps": 1},
        {
            "type": "multimarginal",
            "marginals": ["noise", "picture", "lines"],
            "size": 16,
            "patch": 4,
            "dim": 16,
            "depth": 3,
            "heads": 2,
        },
        "pictures",
    ),
    "step_policy": case(
        {"type": "step_policy", "teacher": {"model": "DECODED", "guidance_scale": 2.0}, "rewards": BRIGHT, "cost": 5.0},
        {"type": "step_policy", "choices": [1, 2, 3], "num_classes": 3, "dim": 16, "heads": 2},
        "labels",
    ),
    "draft": policy("draft", steps=3, through=2, rewards=BRIGHT),
    "diffusion_dpo": policy("diffusion_dpo", beta=10.0),
    "pso": policy("pso", steps=3, rewards=BRIGHT),
    "spo": policy("spo", steps=3, skipped=0, threshold=0.0, candidates=2, rewards=BRIGHT),
    "ddo": policy("ddo", steps=2, round_steps=2),
    "flow_grpo": policy("flow_grpo", steps=3, group=2, refresh=2, clip=0.2, rewards=BRIGHT),
    "diffusion_nft": policy("diffusion_nft", steps=2, group=2, rewards=BRIGHT),
}
