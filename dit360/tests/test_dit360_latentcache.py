"""Cached latents: the same training as without, and nothing that is taken for something else."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from dit360 import latentcache
from dit360.cli import train as command
from dit360.data.rows import Row, StoredImage, open_rows
from dit360.latentcache import LatentCache, encode_moments, fingerprint
from dit360.training import build
from dit360.training.datamodule import Examples, read_rows
from dit360.training.module import DiT360Training
from dit360.training.options import TINY_DEFAULTS, TrainOptions, resolve
from dit360.training.run import train
from dit360.vae import set_vae_wrap

HEIGHT = 32
PANORAMAS, PHOTOS = 4, 3
VIEWS = 2 * (PANORAMAS - 1) + 1 + PHOTOS  # one panorama and the photos are never mirrored


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Panoramas, the first of which names a side, and photos on a canvas, as jsonl files."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for kind, count in (("panorama", PANORAMAS), ("photo", PHOTOS)):
        lines = []
        for k in range(count):
            name = f"{kind}{k}.png"
            pixels = rng.integers(0, 256, (HEIGHT, 2 * HEIGHT, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            record = {"image": name, "caption": f"{kind} {k}" + " left" * (k == 0)}
            if kind == "photo" or k == 1:
                mask = np.zeros((HEIGHT, 2 * HEIGHT), np.uint8)
                mask[8:24, 16:40] = 255
                Image.fromarray(mask).save(folder / f"mask_{name}")
                record["mask"] = f"mask_{name}"
            lines.append(json.dumps(record))
        (folder / f"{kind}s.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def options(micro_flux: Path, data: Path, tmp_path: Path) -> Any:
    """Makes options of a small mix run."""

    def make(**given: Any) -> TrainOptions:
        small: dict[str, Any] = {
            "pretrained_model_name_or_path": str(micro_flux), "resolution": HEIGHT,
            "panorama_data": str(data / "panoramas.jsonl"),
            "perspective_data": str(data / "photos.jsonl"), "perspective_start_epoch": 0,
            "perspective_decay": 1.0, "save_dir": tmp_path / "run", "max_sequence_length": 16,
            "rank": 2, "lora_alpha": 4, "train_batch_size": 2, "learning_rate": 1e-2,
            "lr_schedule": "constant", "aux_from_epoch": 0, "max_epochs": 1, "accelerator": "cpu",
        }  # fmt: skip
        return resolve({**TINY_DEFAULTS, **small} | given, {})

    return make


@pytest.fixture
def vae(micro_flux: Path) -> Any:
    """The circular VAE, with a posterior variance that depends on the image."""
    made: Any = AutoencoderKL.from_pretrained(micro_flux, subfolder="vae")
    generator = torch.Generator().manual_seed(0)
    weight = made.encoder.conv_out.weight
    weight.data[16:] = 0.3 * torch.randn(weight[16:].shape, generator=generator)
    made.requires_grad_(False)
    set_vae_wrap(made)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collects the images that go through the encoder into a cache."""
    seen: list[torch.Tensor] = []

    def spy(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return encode_moments(vae, pixels)

    monkeypatch.setattr(latentcache, "encode_moments", spy)
    return seen


def make_examples(options: TrainOptions, *, cached: bool, vae: Any = None) -> Examples:
    """Examples whose text embeddings are random, seeded by the caption."""
    panoramas, photos = read_rows(options)
    texts = build.TextMemory()
    for number, row in enumerate((*panoramas, *photos)):
        generator = torch.Generator().manual_seed(number)
        embeds = torch.randn(16, 32, generator=generator)
        texts[row.caption] = embeds, torch.randn(32, generator=generator)
    examples = Examples(options, panoramas, photos, texts)
    if cached:
        build.prepare_latents(options, vae, examples)
    return examples


def rows_of(data: Path) -> list[Row]:
    return open_rows(data / "panoramas.jsonl")


# ---- the same training --------------------------------------------------------------------------


@pytest.mark.parametrize(
    # float16: 2^-11 of each moment. float32: sums in another order, since the image is turned.
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 2e-3)], ids=["float32", "float16"]
)  # fmt: skip
def test_steps_equal_those_that_encode(
    options: Any, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype, tolerance: float,
) -> None:  # fmt: skip
    """Latents, masks and losses of turned and mirrored panoramas and of photos, over 4 epochs."""
    monkeypatch.setattr(latentcache, "STORED_DTYPE", dtype)
    made = options(latent_cache=tmp_path / "cache", lora_drop_out=0.0)
    assert (made.roll, made.flip) == ("uniform", True)
    torch.manual_seed(0)
    module: Any = build.build_module(made, "auto")
    module.vae = vae
    module.log_dict = lambda *_, **__: None
    for name, parameter in module.flux_transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    clean: list[torch.Tensor] = []
    draw = module.draw
    module.draw = lambda latents, streams: (clean.append(latents), draw(latents, streams))[1]
    losses: list[list[float]] = [[], []]
    poses = set()
    # The plain examples come first: the second ones take the encoder away.
    for cached in (False, True):
        examples = make_examples(made, cached=cached, vae=vae)
        for epoch in range(4):
            examples.panoramas.set_epoch(epoch)
            for start in range(0, len(examples), 2):
                numbers = range(start, min(start + 2, len(examples)))
                batch = torch.utils.data.default_collate([examples[k] for k in numbers])
                assert ("moments" in batch, "pixel_values" in batch) == (cached, not cached)
                losses[cached].append(module.training_step(batch, 0).item())
            poses |= {examples.panoramas.draw_pose(k) for k in range(1, PANORAMAS)}
    assert len(losses[0]) == 16
    assert {(flip, shift > 0) for flip, shift in poses} >= {(True, True), (False, True)}
    for plain, stored in zip(clean[:16], clean[16:], strict=True):
        assert plain.dtype == stored.dtype == torch.float32
        assert torch.allclose(plain, stored, rtol=0, atol=tolerance * plain.abs().max().item())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_moments_are_those_of_the_posterior(vae: Any, data: Path, tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, vae, HEIGHT, rows_of(data))
    cache.encode_all(vae, [True] * PANORAMAS)
    with Image.open(data / "panorama2.png") as image:
        pixels = torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).movedim(-1, 0)[None]
    for mirrored in (False, True):
        with torch.no_grad():
            posterior = vae.encode(pixels.flip(-1) if mirrored else pixels).latent_dist
        moments = cache.get(2, mirrored=mirrored)
        assert moments.dtype == torch.float16
        assert moments.shape == (32, HEIGHT // 8, HEIGHT // 4)
        expected = torch.cat([posterior.mean, posterior.logvar], 1)[0]
        assert torch.allclose(moments.float(), expected, rtol=2**-11, atol=1e-6)


def test_moments_beyond_the_range(vae: Any, data: Path, tmp_path: Path) -> None:
    """The log-variance is clamped as the library does it; means that overflow are refused."""
    vae.encoder.conv_out.bias.data[16:] = 1e6
    cache = LatentCache(tmp_path, vae, HEIGHT, rows_of(data))
    cache.encode_all(vae, [False] * PANORAMAS)
    assert (cache.get(0, mirrored=False)[16:] == 20).all()
    vae.encoder.conv_out.bias.data[3] = 1e6
    cache = LatentCache(tmp_path, vae, HEIGHT, rows_of(data))
    with pytest.raises(ValueError, match=r"panoramas.jsonl line \d: its latents are not finite"):
        cache.encode_all(vae, [False] * PANORAMAS)
    assert not cache.place.exists() or not list(cache.place.iterdir())


# ---- building -----------------------------------------------------------------------------------


def test_interrupted_build_goes_on(
    options: Any, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    encoded: list[torch.Tensor],
) -> None:  # fmt: skip
    """Interrupted while the third file is written, then once more at another place."""
    made = options(latent_cache=tmp_path / "cache")
    save = latentcache.save_file

    def stop_at(count: int) -> None:
        written: list[Path] = []

        def stop(tensors: Any, path: Path) -> None:
            save(tensors, path)
            written.append(path)
            if len(written) == count:
                path.write_bytes(path.read_bytes()[:100])
                raise KeyboardInterrupt

        monkeypatch.setattr(latentcache, "save_file", stop)

    for count, stored in ((3, 2), (4, 5)):
        stop_at(count)
        with pytest.raises(KeyboardInterrupt):
            make_examples(made, cached=True, vae=vae)
        files = list((tmp_path / "cache").rglob("*.*"))
        assert len(files) == stored
        assert all(load_file(path)["moments"].isfinite().all() for path in files)
    assert len(encoded) == 5 + 2  # two were not stored
    monkeypatch.setattr(latentcache, "save_file", save)
    examples = make_examples(made, cached=True, vae=vae)
    assert len(encoded) == VIEWS + 2
    assert examples.latents is not None
    assert all(examples[index]["moments"].isfinite().all() for index in range(len(examples)))


def test_processes_share_the_work(
    vae: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that builds while the first one does: nothing is encoded twice."""
    flips = [True] * PANORAMAS
    caches = [LatentCache(tmp_path, vae, HEIGHT, rows_of(data)) for _ in range(2)]
    counts: list[int] = []

    def encode_and_let_the_other_go(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(latentcache, "encode_moments", encode_moments)
        moments = encode_moments(vae, pixels)
        counts.append(caches[1].encode_all(vae, flips))
        return moments

    monkeypatch.setattr(latentcache, "encode_moments", encode_and_let_the_other_go)
    counts.append(caches[0].encode_all(vae, flips))
    assert counts == [2 * PANORAMAS, 2]  # of the image at which both were
    assert caches[0].missing(flips) == []


def test_mirror_images_only_where_they_may_occur(
    options: Any, vae: Any, tmp_path: Path, encoded: list[torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import copy

    made = options(latent_cache=tmp_path / "cache", flip=False)
    make_examples(made, cached=True, vae=copy.deepcopy(vae))
    assert len(encoded) == PANORAMAS + PHOTOS
    with caplog.at_level(logging.INFO):
        examples = make_examples(options(latent_cache=made.latent_cache), cached=True, vae=vae)
    assert len(encoded) == VIEWS == 10
    assert [examples.may_flip(k) for k in range(len(examples))] == [False] + [True] * 3 + [
        False
    ] * 3
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    assert len(files) == VIEWS
    (line,) = (r.getMessage() for r in caplog.records if r.name == "dit360.training.build")
    assert line.startswith(f"{VIEWS} latents take {size / 1e6:.1f} MB in {tmp_path / 'cache'}")


# ---- what an entry belongs to -------------------------------------------------------------------


def test_other_vae_size_and_wrap_do_not_hit(vae: Any, data: Path, tmp_path: Path) -> None:
    rows, flips = rows_of(data), [False] * PANORAMAS

    def missing(height: int = HEIGHT) -> int:
        return len(LatentCache(tmp_path, vae, height, rows).missing(flips))

    assert missing() == PANORAMAS
    cache = LatentCache(tmp_path, vae, HEIGHT, rows)
    assert cache.encode_all(vae, flips) == PANORAMAS
    assert missing() == 0
    assert missing(2 * HEIGHT) == PANORAMAS
    set_vae_wrap(vae, "none")
    assert missing() == PANORAMAS
    set_vae_wrap(vae)
    assert missing() == 0
    vae.encoder.down_blocks[1].resnets[0].conv1.weight.data[3, 2, 1, 0] += 1e-6
    assert missing() == PANORAMAS
    LatentCache(tmp_path, vae, HEIGHT, rows).encode_all(vae, flips)
    assert cache.count_unused(flips) == (0, 1)


def test_fingerprint_is_of_the_encoder_alone(vae: Any) -> None:
    first = fingerprint(vae)
    vae.decoder.conv_in.weight.data += 1
    vae.to(torch.float64)
    assert fingerprint(vae) == first
    vae.register_to_config(norm_num_groups=2)
    assert fingerprint(vae) != first


def test_changed_image_does_not_hit_and_a_moved_one_does(
    vae: Any, data: Path, tmp_path: Path
) -> None:
    """Same name, size and time, one other pixel: the content decides, of uncompressed files too."""
    path = data / "panorama1.bmp"
    Image.open(data / "panorama1.png").save(path)
    row = Row(image=path, caption="a", where="x")
    flips = [False]
    first = LatentCache(tmp_path / "cache", vae, HEIGHT, [row])
    first.encode_all(vae, flips)
    moved = path.rename(tmp_path / "elsewhere.bmp")
    other = Row(image=moved, caption="b", supervised=data / "mask_photo1.png", where="y")
    assert LatentCache(tmp_path / "cache", vae, HEIGHT, [other]).missing(flips) == []
    content, status = bytearray(moved.read_bytes()), moved.stat()
    content[-1] ^= 1
    moved.write_bytes(content)
    os.utime(moved, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert moved.stat().st_size == status.st_size
    changed = LatentCache(tmp_path / "cache", vae, HEIGHT, [other])
    assert changed.missing(flips) == [0]
    changed.encode_all(vae, flips)
    assert changed.count(flips)[0] == 1
    assert changed.count_unused(flips) == (1, 0)  # the stale entry


def test_images_of_a_table_hit_those_of_files(vae: Any, data: Path, tmp_path: Path) -> None:
    path = data / "panorama1.png"
    table = [{"image": {"bytes": path.read_bytes(), "path": None}},
             {"image": {"bytes": None, "path": str(path)}}]  # fmt: skip
    stored = [Row(image=StoredImage(table, k, "image"), caption="a", where="x") for k in (0, 1)]
    cache = LatentCache(tmp_path / "cache", vae, HEIGHT, stored)
    assert cache.encode_all(vae, [True, True]) == 2  # the same image twice
    assert cache.count([True, True])[0] == 2
    files = LatentCache(tmp_path / "cache", vae, HEIGHT, rows_of(data))
    assert files.missing([True] * PANORAMAS) == [0, 2, 3]


# ---- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--roll", "original"], "--roll is original and turns by any number of pixels"),
        (["--preset", "released-panorama"], "use --roll uniform or none"),
        (["--vae_wrap", "none", "--roll", "uniform"], "use --vae_wrap circular or --roll none"),
    ],
)
def test_what_is_not_exact_is_refused(
    arguments: list[str], message: str, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    common = ["--tiny", f"--panorama_data={data / 'panoramas.jsonl'}", f"--save_dir={tmp_path}"]
    assert command.main([*common, f"--latent_cache={tmp_path / 'cache'}", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --latent_cache ")
    assert message in line
    assert not (tmp_path / "cache").exists()


def test_wrap_none_is_exact_without_turns(options: Any, tmp_path: Path) -> None:
    made = options(latent_cache=tmp_path, vae_wrap="none", roll="none")
    assert made.latent_cache == tmp_path


def losses_of(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], Any]:
    """Loss of every step of a run, and its module."""
    losses: list[float] = []
    modules: list[Any] = []
    step = DiT360Training.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        losses.append(loss.item())
        modules.append(self)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(DiT360Training, "training_step", spy)
        train(options)
    return losses, modules[-1]


def test_mix_run_equals_one_that_encodes(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of panoramas and masked photos, with validation, which needs the decoder alone."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red room\n")
    common: dict[str, Any] = {
        "max_epochs": 2, "lora_drop_out": 0.1, "learning_rate": 1e-3, "validation_epochs": 2,
        "validation_inference_steps": 1, "validation_prompts": prompts,
    }  # fmt: skip
    plain, module = losses_of(options(**common), monkeypatch)
    assert hasattr(module.vae, "encoder")
    common |= {"latent_cache": tmp_path / "cache", "save_dir": tmp_path / "cached"}
    cached, module = losses_of(options(**common), monkeypatch)
    assert not hasattr(module.vae, "encoder")
    assert len(plain) == 2 * 3
    assert cached == pytest.approx(plain, rel=5e-3)  # float16, and weights that differ by it
    assert (tmp_path / "cached/validation/epoch=01_prompt=0.png").is_file()


def test_resumed_run_repeats_an_unbroken_one(
    options: Any, tmp_path: Path, encoded: list[torch.Tensor]
) -> None:
    common: dict[str, Any] = {
        "latent_cache": tmp_path / "cache", "lora_drop_out": 0.1, "max_epochs": 2
    }  # fmt: skip
    whole = train(options(save_dir=tmp_path / "whole", **common))
    common |= {"save_dir": tmp_path / "parts"}
    train(options(max_steps=2, **common))  # inside epoch 0
    broken = train(options(resume_from_checkpoint="last", **common))
    assert len(encoded) == VIEWS
    one, two = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        for folder in (whole, broken)
    )
    assert one["global_step"] == two["global_step"] == 6
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(two["state_dict"][name], v) for name, v in one["state_dict"].items())
