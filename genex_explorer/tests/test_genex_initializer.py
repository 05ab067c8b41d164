"""The initializer: geometry in closed form, what reaches FLUX.1-Fill, and `initialize.py`.

The pipeline has random weights, but the VAE factor (8), latent channels (16) and therefore the
conditions of the released one.
"""

import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from genex_explorer import initializer as module
from genex_explorer.cli import initialize
from genex_explorer.initializer import (
    TRIGGER,
    GenExWorldInitializerPipeline,
    check_size,
    fill_mask,
    front_face,
    open_initializer,
    paste_front,
    place_front,
)
from shared_pano_utils import erp_to_perspective
from shared_pano_utils.imageio import read_image, write_image
from shared_pano_utils.metadata import read_gpano

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
WORDS = ("genex", "panoramic", "world", "initialization", ",", "a", "sunny", "street")


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(set("".join(WORDS)))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in WORDS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def tiny_fill_pipeline() -> GenExWorldInitializerPipeline:
    clip_words, t5_words = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(0)
    pipeline = GenExWorldInitializerPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(
            block_out_channels=(8,) * 4,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_words), hidden_size=32, intermediate_size=32,
                num_hidden_layers=1, num_attention_heads=2,
                bos_token_id=clip_words.bos_token_id, eos_token_id=clip_words.eos_token_id,
                pad_token_id=clip_words.pad_token_id,
            )
        ),
        tokenizer=clip_words,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(t5_words), d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2
            )
        ),
        tokenizer_2=t5_words,
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=384, out_channels=64, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
    )  # fmt: skip
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.eval()  # as loading leaves them: without dropout
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> GenExWorldInitializerPipeline:
    pipeline = tiny_fill_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pipeline: FluxFillPipeline) -> str:
    """Folder of the pipeline as the stock class would have stored it."""
    folder = tmp_path_factory.mktemp("model")
    FluxFillPipeline(**pipeline.components).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LoRA of rank 4 on the attention, none of whose factors is zero."""
    folder = tmp_path_factory.mktemp("lora")
    transformer = tiny_fill_pipeline().transformer
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    layers = get_peft_model_state_dict(transformer)
    GenExWorldInitializerPipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.jpg", smooth(60, 80))
    return tmp_path / "photo.jpg"


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(6 * x / width) * np.cos(5 * y / height)
    return np.stack([200 * x / width, 200 * y / height, waves], -1).astype(np.uint8)


def steps(seed: int = 0) -> dict[str, Any]:
    """Options of a short call."""
    return {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(seed)}


# ---- geometry -----------------------------------------------------------------------------------


def test_front_face_is_the_middle_square() -> None:
    array = np.zeros((40, 101, 3), np.uint8)
    array[:, 30:70] = smooth(40, 40)
    face = front_face(Image.fromarray(array), 40)
    assert (np.asarray(face) == smooth(40, 40)).all()
    upright = Image.fromarray(np.swapaxes(array, 0, 1))
    assert (np.asarray(front_face(upright, 40)) == np.swapaxes(smooth(40, 40), 0, 1)).all()
    grey = front_face(Image.new("LA", (30, 50), (90, 255)))
    assert (grey.size, grey.mode, grey.getpixel((0, 0))) == ((512, 512), "RGB", (90, 90, 90))


@pytest.mark.parametrize("fov_deg", [40.0, 90.0, 120.0])
def test_placed_photo_by_rays(fov_deg: float) -> None:
    size, side = (128, 256), 200
    face = smooth(side, side)
    erp = place_front(face, size, fov_deg)
    mask = fill_mask(size, fov_deg)
    assert (erp[mask == 255] == 255).all()
    tangent = math.tan(math.radians(fov_deg) / 2)
    inside = 0
    for v, u in zip(*np.nonzero(mask == 0), strict=True):
        lon = 2 * math.pi * (u + 0.5) / 256 - math.pi
        lat = math.pi / 2 - math.pi * (v + 0.5) / 128
        # On the plane of the photo: -1 to 1 from the left and upper to the other border.
        x, y = math.tan(lon) / tangent, -math.tan(lat) / math.cos(lon) / tangent
        column, row = (min(max(side * (c + 1) / 2, 0), side - 1) for c in (x, y))
        expected = face[round(max(row - 0.5, 0)), round(max(column - 0.5, 0))]
        assert np.abs(erp[v, u].astype(int) - expected).max() <= 4
        inside += abs(x) < 1 and abs(y) < 1
    assert inside / (mask == 0).sum() > 0.94  # the rest goes on with the photo's border


def test_front_face_of_the_panorama_is_the_photo() -> None:
    erp = place_front(smooth(128, 128), (256, 512))
    again = np.asarray(erp_to_perspective(erp, size=(128, 128), fov=90)).astype(int)
    difference = np.abs(again - smooth(128, 128))[3:-3, 3:-3]  # white is mixed in at the border
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize("size", [(16, 32), (64, 128)])
@pytest.mark.parametrize("fov_deg", [10.0, 90.0, 150.0])
def test_nothing_white_is_kept(size: tuple[int, int], fov_deg: float) -> None:
    erp = place_front(np.full((8, 8, 3), 7, np.uint8), size, fov_deg)
    kept = fill_mask(size, fov_deg) == 0
    assert kept.any()
    assert (erp[kept] == 7).all()


def test_mask_of_other_fields_of_view() -> None:
    mask = fill_mask((180, 360), 60.0)
    rows, columns = np.nonzero(mask == 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 119, 150, 210)
    # At longitude 30 the photo ends at atan(tan(30) cos(30)) = 26.57 degrees.
    kept = np.nonzero(mask[:, 210] == 0)[0]
    assert (kept.min(), kept.max()) == (64, 116)


def test_pasted_photo_fades_out() -> None:
    erp = np.full((256, 512, 3), 100, np.uint8)
    pasted = paste_front(erp, np.full((64, 64, 3), 200, np.uint8)).astype(int)
    # Along the equator x = tan(longitude), and the weight is 1 - |x|, opaque from 0.1.
    x = np.abs(np.tan((np.arange(512) + 0.5) / 512 * 2 * np.pi - np.pi))
    ahead = np.abs(np.arange(512) - 255.5) < 64
    row = np.abs(np.tan(np.pi / 2 - (128 + 0.5) / 256 * np.pi)) / np.cos(
        (np.arange(512) + 0.5) / 512 * 2 * np.pi - np.pi
    )
    alpha = np.where(ahead, np.clip((1 - x) * (1 - np.abs(row)) / 0.1, 0, 1), 0)
    assert np.abs(pasted[128] - (100 + 100 * alpha)[:, None]).max() <= 1
    assert (pasted[:64] == 100).all()
    assert (pasted[:, :192] == 100).all()
    assert np.unique(pasted[128]).size > 5


@pytest.mark.parametrize("size", [(1024, 1024), (100, 200), (0, 0), (512, 1023), (-16, -32)])
def test_sizes_refused(size: tuple[int, int]) -> None:
    message = rf"panorama is {size[1]}x{size[0]}; width must be 2 x height .* multiple of 16"
    with pytest.raises(ValueError, match=message):
        check_size(*size)


@pytest.mark.parametrize("fov_deg", [0.0, -90.0, 180.0, math.nan])
def test_fields_of_view_refused(fov_deg: float) -> None:
    for call in (fill_mask, lambda _, fov: paste_front(np.zeros((16, 32, 3)), np.ones(0), fov)):
        with pytest.raises(ValueError, match=rf"field of view is {fov_deg} degrees; use 10 to 150"):
            call((16, 32), fov_deg)


# ---- what reaches the model -----------------------------------------------------------------------


def test_conditions_of_the_transformer(
    pipeline: GenExWorldInitializerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True
    )
    texts: list[Any] = []
    encoded: list[torch.Tensor] = []
    encode, encode_image = pipeline.encode_prompt, pipeline.vae.encode
    monkeypatch.setattr(
        pipeline.vae, "encode", lambda image: (encoded.append(image), encode_image(image))[1]
    )
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda **kw: (texts.append(kw["prompt"]), encode(**kw))[1]
    )
    image = Image.fromarray(smooth(60, 80))
    front, output = pipeline(image, "a sunny street", height=64, **steps())
    handle.remove()
    assert front.size == (32, 32)
    assert (np.asarray(front) == np.asarray(front_face(image, 32))).all()
    assert output.images[0].size == (128, 64)
    assert texts == [f"{TRIGGER}, a sunny street"]
    assert len(seen) == 2
    assert seen[0]["guidance"].tolist() == [3.5]
    # One token for 16 x 16 pixels: noise 64, masked image 64, mask 256 channels.
    tokens = seen[0]["hidden_states"]
    assert tokens.shape == (1, 4 * 8, 384)
    mask = torch.from_numpy(fill_mask((64, 128)) / 255).float()
    # Channel (offset in the 8 x 8 pixels of a latent, place of the latent in the token).
    cells = mask.reshape(4, 2, 8, 8, 2, 8).permute(0, 3, 2, 5, 1, 4).reshape(32, 256)
    assert torch.equal(tokens[0, :, 128:], cells)
    # Unknown pixels are grey before the VAE sees them: nothing depends on them.
    erp = place_front(np.asarray(front), (64, 128)).astype(np.float32) / 255
    erp = 2 * torch.from_numpy(erp).movedim(-1, 0) - 1
    masked = (erp * (1 - mask))[None]
    generator = steps()["generator"]
    torch.randn(1, 16, 8, 16, generator=generator)  # posterior of the unused first latents
    noise = torch.randn(1, 16, 8, 16, generator=generator)
    assert torch.equal(encoded[1], masked)
    with torch.no_grad():
        posterior = encode_image(encoded[1]).latent_dist.sample(generator)
    latents = (posterior - 0.1159) * 0.3611
    packed = FluxFillPipeline._pack_latents
    torch.testing.assert_close(tokens[..., :64], packed(noise, 1, 16, 8, 16))
    torch.testing.assert_close(tokens[..., 64:128], packed(latents, 1, 16, 8, 16))


def test_size_and_prompt_by_default(
    pipeline: GenExWorldInitializerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(FluxFillPipeline, "__call__", lambda _, **options: calls.append(options))
    front, _ = pipeline(Image.new("RGB", (300, 200), (9, 8, 7)))
    (options,) = calls
    assert front.size == (512, 512)
    assert options["image"].size == options["mask_image"].size == (2048, 1024)
    assert (options["width"], options["height"]) == (2048, 1024)
    assert options["image"].getpixel((1024, 512)) == (9, 8, 7)
    assert options["image"].getpixel((0, 512)) == (255, 255, 255)
    assert (np.asarray(options["mask_image"]) == fill_mask((1024, 2048))).all()
    assert options["prompt"] == TRIGGER
    assert options["guidance_scale"] == 3.5


def test_calls_refused(pipeline: GenExWorldInitializerPipeline) -> None:
    image = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="panorama is 64x64; width must be 2 x height"):
        pipeline(image, height=64, width=64)
    with pytest.raises(TypeError, match="image is ndarray; pass one PIL image"):
        pipeline(np.zeros((32, 32, 3), np.uint8))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"field of view is 180\.0 degrees"):
        pipeline(image, height=64, fov_deg=180.0)


def test_original_module_path() -> None:
    scope: dict[str, Any] = {}
    exec((ROOT / "inference" / "initializer.py").read_text(encoding="utf-8"), scope)
    assert scope["GenExWorldInitializerPipeline"] is GenExWorldInitializerPipeline


# ---- loading ------------------------------------------------------------------------------------


def test_stock_pipeline_is_loaded(model: str, pipeline: GenExWorldInitializerPipeline) -> None:
    loaded = open_initializer(model, device="cpu", dtype=torch.float32)
    assert type(loaded) is GenExWorldInitializerPipeline
    loaded.set_progress_bar_config(disable=True)
    image = Image.fromarray(smooth(40, 40))
    images = [p(image, height=32, **steps())[1].images[0] for p in (pipeline, loaded)]
    assert (np.asarray(images[0]) == np.asarray(images[1])).all()
    assert open_initializer(model, device="cpu").transformer.dtype == torch.bfloat16


def test_lora_is_put_on(model: str, lora: str) -> None:
    plain = open_initializer(model, device="cpu", dtype=torch.float32)
    tuned = open_initializer(model, lora=lora, device="cpu", dtype=torch.float32)
    name = "transformer_blocks.0.attn.to_q"
    layer, base = tuned.transformer.get_submodule(name), plain.transformer.get_submodule(name)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    down, up = layer.lora_A["default_0"].weight, layer.lora_B["default_0"].weight
    assert down.shape == (4, 32)
    torch.testing.assert_close(layer(x), base(x) + x @ down.T @ up.T)
    assert (layer(x) - base(x)).abs().max() > 1e-3


def test_lora_file(model: str, lora: str) -> None:
    file = f"{lora}/pytorch_lora_weights.safetensors"
    tuned = open_initializer(model, lora=file, device="cpu", dtype=torch.float32)
    assert tuned.get_active_adapters() == ["default_0"]


def test_lora_mistakes(model: str, lora: str, tmp_path: Path) -> None:
    layers = load_file(f"{lora}/pytorch_lora_weights.safetensors")
    wider, other, broken = (tmp_path / f"{name}.safetensors" for name in ("w", "o", "b"))
    wide = {k: torch.cat([x, x]) if "lora_B" in k else x for k, x in layers.items()}
    save_file(wide, wider)
    save_file({key.replace("transformer.", "unet.", 1): x for key, x in layers.items()}, other)
    broken.write_bytes(b"no weights")
    for path, kind, message in (
        (tmp_path / "nowhere", FileNotFoundError, "nowhere does not exist; pass a file, a folder"),
        (
            tmp_path,
            FileNotFoundError,
            "no LoRA weights can be read from .* pass a safetensors file",
        ),
        (broken, FileNotFoundError, "no LoRA weights can be read from .* pass a safetensors file"),
        (wider, ValueError, r"w\.safetensors does not fit the FLUX transformer: .*size mismatch"),
        (other, ValueError, r"o\.safetensors has no weights for the FLUX transformer"),
    ):
        with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
            open_initializer(model, lora=str(path), device="cpu")


def test_loading_mistakes(model: str, lora: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"model folder \./nowhere does not exist"):
        open_initializer("./nowhere", device="cpu")
    with pytest.raises(FileNotFoundError, match="LoRA weights go to --lora"):
        open_initializer(lora, device="cpu")
    with pytest.raises(ValueError, match="offload 'model' needs an accelerator"):
        open_initializer(model, device="cpu", offload="model")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"--lora needs peft: pip install -e \"\.\[train\]\""):
        open_initializer(model, lora=lora, device="cpu")


METHODS = {
    "none": "to",
    "model": "enable_model_cpu_offload",
    "sequential": "enable_sequential_cpu_offload",
    "group": "enable_group_offload",
}


@pytest.mark.parametrize("offload", METHODS)
def test_offload_calls_its_method(
    model: str, offload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, calls = torch.device("meta"), []
    monkeypatch.setattr(module, "choose_device", lambda _: meta)

    def record(name: str) -> Any:
        return lambda _, device=None, **__: calls.append((name, device))

    for name in METHODS.values():
        monkeypatch.setattr(FluxFillPipeline, name, record(name))
    open_initializer(model, offload=offload)
    assert calls == [(METHODS[offload], meta)]


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(model: str, tmp_path: Path) -> list[str]:
    return [
        "--model", model, "--height", "32", "--num_inference_steps", "1", "--device", "cpu",
        "--dtype", "float32", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip


def test_command_writes_what_the_pipeline_paints(
    command: list[str],
    photo: Path,
    tmp_path: Path,
    pipeline: GenExWorldInitializerPipeline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--image", str(photo), "--prompt", "a street", "--seed", "3", *command]
    assert initialize.main(argv) == 0
    assert "1 of 1 panoramas written" in capsys.readouterr().out
    written = read_image(tmp_path / "out" / "photo.png")
    front, output = pipeline(
        Image.fromarray(read_image(photo)), "a street", height=32,
        num_inference_steps=1, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert (written == np.asarray(output.images[0])).all()
    assert read_gpano(tmp_path / "out" / "photo.png")
    assert (tmp_path / "out" / "run.json").is_file()

    before = (tmp_path / "out" / "photo.png").stat().st_mtime_ns
    assert initialize.main([*argv, "--model", "./nowhere"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "photo.png").stat().st_mtime_ns == before

    assert initialize.main([*argv, "--overwrite", "--paste_front"]) == 0
    pasted = read_image(tmp_path / "out" / "photo.png")
    assert (pasted == paste_front(written, np.asarray(front))).all()
    assert (pasted != written).any()


def test_flags_reach_the_pipeline(
    photo: Path, tmp_path: Path, lora: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, Any] = {}
    called: dict[str, Any] = {}

    class Recorder:
        def set_progress_bar_config(self, **options: Any) -> None: ...

        def __call__(self, image: Image.Image, prompt: str, scale: float, **options: Any) -> Any:
            called.update(size=image.size, prompt=prompt, guidance_scale=scale, **options)
            output = ModuleType("output")
            output.images = [Image.new("RGB", (64, 32))]  # pyright: ignore
            return image, output

    def opener(model: str, **options: Any) -> Recorder:
        opened.update(model=model, **options)
        return Recorder()

    monkeypatch.setattr(module, "open_initializer", opener)
    out = str(tmp_path / "out")
    assert initialize.main(["--image", str(photo), "--output_dir", out]) == 0
    assert called.pop("generator").initial_seed() == 0
    assert called == {
        "size": (80, 60), "prompt": None, "guidance_scale": 3.5, "height": 1024, "fov_deg": 90.0,
        "num_inference_steps": 50,
    }  # fmt: skip
    assert opened == {
        "model": "genex-world/World-Initializer-image-to-panorama", "lora": None,
        "device": "auto", "dtype": torch.bfloat16, "offload": "none",
    }  # fmt: skip
    flags = "--overwrite --fov 60 --height 512 --guidance_scale 30 --seed 7 --device cuda:1 "
    flags += "--num_inference_steps 8 --dtype float16 --offload group --prompt beach --model m"
    argv = ["--image", str(photo), "--output_dir", out, *flags.split(), "--lora", lora]
    assert initialize.main(argv) == 0
    assert called.pop("generator").initial_seed() == 7
    assert called == {
        "size": (80, 60), "prompt": "beach", "guidance_scale": 30.0, "height": 512,
        "fov_deg": 60.0, "num_inference_steps": 8,
    }  # fmt: skip
    assert opened == {
        "model": "m", "lora": lora, "device": "cuda:1", "dtype": torch.float16, "offload": "group",
    }  # fmt: skip


def test_many_photos_and_a_broken_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.png"):
        write_image(folder / name, smooth(20, 20))
    (folder / "c.jpg").write_bytes(b"no image")
    missing = str(tmp_path / "d.png")
    assert initialize.main(["--image", str(folder), missing, *command]) == 1
    shown = capsys.readouterr()
    assert "2 of 4 panoramas written" in shown.out
    assert f"failed: {folder / 'c.jpg'}: not a readable image" in shown.err
    assert f"failed: {missing}: no such file" in shown.err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "run.json"]
    # The noise is that of the seed, whatever came before.
    assert (read_image(out / "a.png") == read_image(out / "b.png")).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--height", "1000"], "panorama is 2000x1000; width must be 2 x height and the height a"),
        (["--fov", "200"], "field of view is 200.0 degrees; use 10 to 150"),
        (["--num_inference_steps", "0"], "--num_inference_steps is 0; use 1 or more"),
        (["--model", "./nowhere"], "model folder ./nowhere does not exist"),
        (["--image", "missing.jpg"], "missing.jpg: no such file"),
        (["--image", "{empty}"], "holds no image"),
        (["--image", "a/x.jpg", "b/x.png"], "several images are called 'x'"),
        (["--output_dir", "{here}", "--overwrite"], "photo.png would be replaced by its panorama"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    write_image(tmp_path / "photo.png", smooth(20, 20))
    (tmp_path / "empty").mkdir()
    flags = [flag.format(empty=tmp_path / "empty", here=tmp_path) for flag in flags]
    assert initialize.main(["--image", str(tmp_path / "photo.png"), *command, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert (read_image(tmp_path / "photo.png") == smooth(20, 20)).all()


def test_root_file() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "initialize.py", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "not tried with the released weights" in " ".join(run.stdout.split())
