"""The tiny architecture, its tokenizers and the training of its parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer, T5Tokenizer

from dit360.captions import caption, random_world
from dit360.embedded import TINY_TEXT_LENGTH
from dit360.tiny import (
    LOG_VARIANCE,
    MICRO,
    encode_means,
    flux_scheduler,
    micro_pipeline,
    random_pipeline,
    train_base,
    train_vae,
)
from dit360.tokenizers import clip_tokenizer, t5_tokenizer, words


def test_captions_fit_and_come_back() -> None:
    tokenizer = t5_tokenizer()
    for seed in range(100):
        text = caption(random_world(seed))
        ids = tokenizer(text).input_ids
        assert len(ids) <= TINY_TEXT_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids


def test_every_word_is_one_token() -> None:
    tokenizer = t5_tokenizer()
    for word in words():
        for form in (word, word.capitalize()):
            assert len(tokenizer(form).input_ids) == 2, form  # the word and the end


def test_other_words_fall_into_characters() -> None:
    assert t5_tokenizer().convert_ids_to_tokens(t5_tokenizer()("zoo").input_ids[:-1]) == [
        "▁", "z", "o", "o",
    ]  # fmt: skip
    tokens = clip_tokenizer().convert_ids_to_tokens(clip_tokenizer()("zoo").input_ids)
    assert tokens == ["<|startoftext|>", "z", "o", "o</w>", "<|endoftext|>"]


def test_tokenizers_survive_saving(tmp_path: Path) -> None:
    text = caption(random_world(1))
    for tokenizer, kind in ((clip_tokenizer(), CLIPTokenizer), (t5_tokenizer(), T5Tokenizer)):
        tokenizer.save_pretrained(tmp_path / kind.__name__)
        loaded = kind.from_pretrained(tmp_path / kind.__name__)
        assert loaded(text).input_ids == tokenizer(text).input_ids


def test_micro_pipeline_has_the_parts_of_the_recipe() -> None:
    pipeline = micro_pipeline()
    config = pipeline.transformer.config
    assert (config.num_layers, config.num_single_layers) == (2, 3)
    assert (config.num_attention_heads, config.attention_head_dim) == (2, 32)
    assert config.in_channels == 64
    assert tuple(config.axes_dims_rope) == (8, 12, 12)
    assert pipeline.vae.config.latent_channels == 16
    assert pipeline.vae.quant_conv is None
    assert pipeline.scheduler.config == flux_scheduler().config
    assert not any(part.training for part in (pipeline.text_encoder_2, pipeline.transformer))


def test_random_pipeline_leaves_the_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    random_pipeline(MICRO)
    assert torch.equal(torch.rand(1), expected)


def test_vae_training_learns_and_keeps_the_variance() -> None:
    vae = micro_pipeline().vae
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (16, 1, 1, 3), dtype=np.uint8)
    images = np.broadcast_to(colors, (16, 32, 64, 3)).copy()

    def error() -> float:
        with torch.no_grad():
            decoded = vae.decode(encode_means(vae, images)).sample
        return float((decoded - torch.from_numpy(images).movedim(-1, 1) / 127.5 + 1).abs().mean())

    before = error()
    train_vae(vae, images, steps=60, batch=8, seed=0)
    assert error() < 0.7 * before
    latents = (encode_means(vae, images) - vae.config.shift_factor) * vae.config.scaling_factor
    assert latents.mean().item() == pytest.approx(0, abs=1e-3)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        posterior = vae.encode(torch.rand(1, 3, 32, 64)).latent_dist
    assert posterior.logvar.unique().tolist() == [LOG_VARIANCE]


def test_resumed_base_training_equals_an_unbroken_one(tmp_path: Path, monkeypatch) -> None:
    import dit360.tiny as tiny

    latents = torch.randn(8, 16, 4, 8, generator=torch.Generator().manual_seed(0))
    captions = [caption(random_world(k)) for k in range(8)]
    options = {"steps": 8, "batch": 2, "seed": 3}

    class Killed(Exception):
        pass

    def trained(stops_at: list[int], file: Path) -> dict[str, torch.Tensor]:
        calls = 0
        real = tiny._flow_loss

        def loss(*args):
            nonlocal calls
            calls += 1
            if calls - 1 in stops_at:
                raise Killed
            return real(*args)

        pipeline = micro_pipeline()
        with monkeypatch.context() as patch:
            patch.setattr(tiny, "_flow_loss", loss)
            try:
                train_base(pipeline, latents, captions, state_file=file, **options)
            except Killed:
                return trained([], file)
        return pipeline.transformer.state_dict()

    monkeypatch.setattr(tiny, "SAVE_EVERY", 4)
    whole = trained([], tmp_path / "a.pt")
    broken = trained([6], tmp_path / "b.pt")
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
