"""Precomputed modulation against the stock layers: same numbers, through pipelines and loops."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from dit360.modulation import (
    KEPT_PROMPTS,
    PlannedModulation,
    announced_levels,
    precompute_modulation,
)
from dit360.pipeline import DiT360Pipeline
from dit360.tiny import micro_pipeline

BLOCKS = 2 * 2 + 3 + 1  # norms of 2 double blocks (image and text), 3 single blocks, and the last


def open_micro(dtype: torch.dtype = torch.float32) -> DiT360Pipeline:
    pipeline = DiT360Pipeline(**micro_pipeline().components)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        part.to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stock() -> DiT360Pipeline:
    return open_micro()


@pytest.fixture
def planned() -> DiT360Pipeline:
    pipeline = open_micro()
    precompute_modulation(pipeline)
    return pipeline


def generate(pipeline: DiT360Pipeline, **options: Any) -> Tensor:
    """Packed latents (2, 32, 64)."""
    given = {"prompt": ["a room", "a field"], "guidance_scale": 2.8, "num_inference_steps": 3}
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        **(given | options), height=64, generator=generator, output_type="latent"
    ).images


def velocity(pipeline: DiT360Pipeline, levels: list[float], pooled_seed: int = 0) -> Tensor:
    """One evaluation as an own loop makes it, levels (b) in 0..1."""
    draw = torch.Generator().manual_seed(1)
    batch = len(levels)
    with torch.no_grad():
        return pipeline.transformer(
            hidden_states=torch.randn(batch, 8, 64, generator=draw),
            timestep=torch.tensor(levels),
            guidance=torch.full((batch,), 3.5),
            encoder_hidden_states=torch.randn(batch, 5, 32, generator=draw),
            pooled_projections=torch.randn(
                batch, 32, generator=torch.Generator().manual_seed(pooled_seed)
            ),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_inference_steps": 5, "guidance_scale": 1.0},
        {"true_cfg_scale": 2.0, "negative_prompt": ["a desert", "a wall"]},
        {"num_images_per_prompt": 2},
    ],
)
def test_generation_is_that_of_the_stock_layers(
    stock: DiT360Pipeline, planned: DiT360Pipeline, options: dict[str, Any]
) -> None:
    # Latents are about 3; matrix products of other batch sizes differ in the last float32 bit.
    torch.testing.assert_close(
        generate(planned, **options), generate(stock, **options), atol=4e-6, rtol=0
    )


def test_half_precision_gives_the_same_bits() -> None:
    stock, planned = open_micro(torch.bfloat16), open_micro(torch.bfloat16)
    precompute_modulation(planned)
    assert torch.equal(generate(planned), generate(stock))


def test_one_table_per_prompt_and_guidance(planned: DiT360Pipeline) -> None:
    tables = planned.transformer.modulation_plan.tables
    for count, options in enumerate(
        ({}, {"guidance_scale": 1.0}, {"prompt": ["a hill", "a room"]}), start=1
    ):
        generate(planned, **options)
        generate(planned, **options)
        assert len(tables) == count
    known, rows = next(reversed(tables.values()))
    assert len(known) == 3
    assert [row.shape[:2] for row in rows] == [(3, 2)] * BLOCKS


def test_old_tables_go(planned: DiT360Pipeline) -> None:
    for guidance in range(KEPT_PROMPTS + 2):
        generate(planned, guidance_scale=float(guidance), num_inference_steps=1)
    assert len(planned.transformer.modulation_plan.tables) == KEPT_PROMPTS


def test_the_transformer_is_rid_of_27_percent(planned: DiT360Pipeline) -> None:
    kinds = [m for m in planned.transformer.modules() if isinstance(m, PlannedModulation)]
    assert len(kinds) == BLOCKS
    left = sum(p.numel() for p in planned.transformer.parameters())
    away = planned.transformer.modulation_plan.parameters
    d = 64
    assert away == (d + 1) * d * (2 * 2 * 6 + 3 * 3 + 2)
    whole = sum(p.numel() for p in open_micro().transformer.parameters())
    assert left + away == whole
    assert not any("linear" in key for key in planned.transformer.state_dict() if "norm" in key)


def test_released_model_sheds_the_published_count() -> None:
    from diffusers import FluxTransformer2DModel

    from dit360.modulation import ModulationPlan

    with torch.device("meta"):
        plan = ModulationPlan(FluxTransformer2DModel(guidance_embeds=True), None)
    last_norm = (3072 + 1) * 2 * 3072
    assert plan.parameters == 3_228_567_552 + last_norm  # the published count is of the blocks


def test_own_loops_announce_their_levels(
    stock: DiT360Pipeline, planned: DiT360Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    levels = [1.0, 0.71, 0.123456]
    plan = planned.transformer.modulation_plan
    with caplog.at_level(logging.INFO, "dit360"), announced_levels(planned, levels):
        for level in levels:
            both = [level, level]
            torch.testing.assert_close(
                velocity(planned, both), velocity(stock, both), atol=1e-6, rtol=0
            )
    assert len(plan.tables) == 1
    assert plan.levels is None
    assert "not announced" not in caplog.text


def test_unannounced_levels_are_right_too(
    stock: DiT360Pipeline, planned: DiT360Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dit360"):
        for levels in ([0.33, 0.33], [0.2, 0.9], [0.5]):
            torch.testing.assert_close(
                velocity(planned, levels), velocity(stock, levels), atol=1e-6, rtol=0
            )
    assert "noise level 330 was not announced" in caplog.text


def test_a_scheduler_that_nobody_set_is_not_planned(planned: DiT360Pipeline) -> None:
    """Its 1000 training timesteps would take 2 GB at the released size."""
    assert len(planned.scheduler.timesteps) == 1000
    velocity(planned, [0.5])
    assert not planned.transformer.modulation_plan.tables


def test_another_prompt_does_not_take_the_tables_of_the_last(
    stock: DiT360Pipeline, planned: DiT360Pipeline
) -> None:
    with announced_levels(planned, [0.5]):
        for seed in (0, 1, 0):
            torch.testing.assert_close(
                velocity(planned, [0.5], seed), velocity(stock, [0.5], seed), atol=1e-6, rtol=0
            )
    assert (velocity(stock, [0.5], 0) - velocity(stock, [0.5], 1)).abs().max() > 1e-3


def test_announcing_without_a_plan_does_nothing(stock: DiT360Pipeline) -> None:
    with announced_levels(stock, [0.5]):
        velocity(stock, [0.5])


def test_compiled_blocks_are_compiled_once_for_all_steps(
    stock: DiT360Pipeline, planned: DiT360Pipeline
) -> None:
    transformer = planned.transformer
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    result = generate(planned, num_inference_steps=6)
    torch.testing.assert_close(result, generate(stock, num_inference_steps=6), atol=4e-6, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # not 5 blocks x 6 steps
