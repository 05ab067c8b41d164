"""Cached embeddings against the pipeline's own, their identity, and resuming."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dit360.cli.cache_embeddings import main
from dit360.textcache import TextCache, fingerprint

LENGTH = 24
PROMPTS = ["A red room.", "", "A field under a blue sky.", "A red room."]


@pytest.fixture(scope="module")
def pipeline(micro_flux: Path):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(micro_flux, transformer=None, vae=None)


def counting(pipeline, fail_after: int = 100) -> SimpleNamespace:
    """The pipeline, with its encoder calls counted; it fails after some."""
    calls: list[list[str]] = []

    def encode_prompt(prompt, prompt_2, **options):
        if len(calls) == fail_after:
            raise RuntimeError("power cut")
        calls.append(prompt)
        return pipeline.encode_prompt(prompt, prompt_2, **options)

    return SimpleNamespace(
        config=pipeline.config,
        text_encoder=pipeline.text_encoder,
        text_encoder_2=pipeline.text_encoder_2,
        encode_prompt=encode_prompt,
        calls=calls,
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_embeddings_are_those_of_the_pipeline(
    pipeline, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    cache = TextCache(tmp_path, max_length=LENGTH, dtype=dtype)
    assert cache.encode_all(pipeline, PROMPTS) == 3
    for prompt in PROMPTS:
        embeds, pooled = cache.get(prompt)
        with torch.no_grad():
            expected, expected_pooled, _ = pipeline.encode_prompt(
                prompt, None, max_sequence_length=LENGTH
            )
        assert embeds.shape == (LENGTH, 32)
        assert pooled.shape == (32,)
        assert embeds.dtype == pooled.dtype == dtype
        scale = float(expected.abs().max())
        assert torch.allclose(embeds.float(), expected[0], atol=tolerance * scale)
        assert torch.allclose(pooled.float(), expected_pooled[0], atol=4 * tolerance)
    assert not torch.equal(cache.get(PROMPTS[0])[0], cache.get(PROMPTS[2])[0])


def test_only_missing_prompts_are_encoded(pipeline, tmp_path: Path) -> None:
    counted = counting(pipeline)
    cache = TextCache(tmp_path, max_length=LENGTH)
    assert cache.encode_all(counted, PROMPTS[:1]) == 1
    assert cache.encode_all(counted, PROMPTS) == 2
    assert cache.encode_all(counted, PROMPTS) == 0
    assert counted.calls == [["A red room."], ["", "A field under a blue sky."]]
    assert TextCache(tmp_path, max_length=LENGTH + 1).encode_all(counted, PROMPTS[:1]) == 1
    count, size_bytes = cache.count()
    assert count == 4
    assert size_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


def test_failed_run_keeps_finished_batches(pipeline, tmp_path: Path) -> None:
    prompts = [f"Room {k}." for k in range(5)]
    cache = TextCache(tmp_path, max_length=LENGTH)
    with pytest.raises(RuntimeError, match="power cut"):
        cache.encode_all(counting(pipeline, fail_after=2), prompts, batch_size=2)
    assert cache.missing(prompts) == prompts[4:]
    assert cache.encode_all(counting(pipeline), prompts, batch_size=2) == 1
    assert not list(tmp_path.rglob("*.tmp*"))


def test_cache_without_encoders(pipeline, tmp_path: Path) -> None:
    TextCache(tmp_path, max_length=LENGTH).encode_all(pipeline, PROMPTS)
    bare = SimpleNamespace(config=pipeline.config, text_encoder=None, text_encoder_2=None)
    cache = TextCache(tmp_path, max_length=LENGTH)
    assert cache.encode_all(bare, PROMPTS) == 0
    with pytest.raises(ValueError, match=r"1 prompts are not in .* the first is 'new'; run cache"):
        cache.encode_all(bare, ["new"])
    alone = TextCache(tmp_path, max_length=LENGTH)  # the only model in the folder
    assert torch.equal(alone.get("")[0], cache.get("")[0])
    moved = TextCache(tmp_path, "someone/not-on-this-disk", max_length=LENGTH)
    assert torch.equal(moved.get("")[0], cache.get("")[0])
    with pytest.raises(ValueError, match=r"prompt 'new' is not in .* with 24 tokens"):
        alone.get("new")
    unknown = SimpleNamespace(config={}, text_encoder=None, text_encoder_2=None)
    with pytest.raises(ValueError, match="does not say where it was loaded from"):
        TextCache(tmp_path).encode_all(unknown, PROMPTS)


def test_models_are_told_apart(pipeline, micro_flux: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(micro_flux, other)
    assert fingerprint(other) == fingerprint(micro_flux)
    (other / "transformer" / "config.json").write_text("{}")
    assert fingerprint(other) == fingerprint(micro_flux)  # plays no part in the embeddings
    (weights,) = (other / "text_encoder_2").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    assert fingerprint(other) != fingerprint(micro_flux)
    assert fingerprint(tmp_path) is None
    assert fingerprint("someone/not-on-this-disk") is None

    folder = tmp_path / "cache"
    TextCache(folder, max_length=LENGTH).encode_all(pipeline, PROMPTS)
    cache = TextCache(folder, other, max_length=LENGTH)
    assert len(cache.missing(PROMPTS)) == 3
    cache.encode_all(pipeline, PROMPTS)
    with pytest.raises(ValueError, match="holds embeddings of 2 models"):
        TextCache(folder, max_length=LENGTH).get("")


def test_values_that_float16_cannot_hold(pipeline, tmp_path: Path) -> None:
    large = counting(pipeline)
    encode = large.encode_prompt
    large.encode_prompt = lambda *a, **k: tuple(1e6 * value for value in encode(*a, **k))
    cache = TextCache(tmp_path, max_length=LENGTH, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16; use bfloat16"):
        cache.encode_all(large, PROMPTS)
    assert len(cache.missing(PROMPTS)) == 3


def test_damaged_file_is_named(pipeline, tmp_path: Path) -> None:
    cache = TextCache(tmp_path, max_length=LENGTH)
    cache.encode_all(pipeline, ["A hall."])
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*; delete it and run cache_em"):
        cache.get("A hall.")


def test_command(micro_flux: Path, tmp_path: Path, capsys) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("A hall.\n\nThis is a panorama. A cave.\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{{"image": "{lines}", "caption": ["x", "A caption."]}}\n')
    folder = tmp_path / "cache"
    argv = ["--pretrained_model_name_or_path", str(micro_flux), "--output", str(folder)]
    argv += ["--source", str(rows), "--prompt_file", str(lines), "--prompt", "", "A hall."]
    argv += ["--max_sequence_length", str(LENGTH), "--store_dtype", "fp32", "--device", "cpu"]
    assert main(argv) == 0
    assert "4 prompts, 4 encoded now; 4 stored, 0.0 MB" in capsys.readouterr().out
    cache = TextCache(folder, max_length=LENGTH)
    wanted = ["A caption.", "", "This is a panorama. A hall.", "This is a panorama. A cave."]
    assert cache.missing(wanted) == []
    assert cache.get("")[0].dtype == torch.float32
    assert main(argv) == 0
    assert "0 encoded now" in capsys.readouterr().out
    assert main([*argv, "--no_trigger"]) == 0
    assert cache.missing(["A hall."]) == []
    assert main(argv[:4]) == 2
    assert "nothing to encode" in capsys.readouterr().err
