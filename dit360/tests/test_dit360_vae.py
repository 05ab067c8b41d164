"""The circular VAE: rolls, the stock class on padded images, tiles, copies, precision."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from torch import nn
from torch.nn import functional as F

from dit360 import vae as vae_module
from dit360.vae import decode, encode, pack, set_vae_wrap, unpack


@pytest.fixture(scope="module")
def stock() -> AutoencoderKL:
    """Random weights in float64, so that only the padding makes a difference; factor 8."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for parameter in vae.parameters():  # norms at 1 and biases at 0 would hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return vae.double().eval().requires_grad_(requires_grad=False)


@pytest.fixture
def circular(stock: AutoencoderKL) -> AutoencoderKL:
    vae = copy.deepcopy(stock)
    set_vae_wrap(vae, "circular")
    return vae


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


# ---- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 5, 8])
def test_both_halves_are_equivariant(circular: AutoencoderKL, columns: int) -> None:
    latents = random(1, 16, 4, 12)
    rolled = decode(circular, latents.roll(columns, -1))
    assert largest(rolled, decode(circular, latents).roll(8 * columns, -1)) < 1e-12
    images = random(1, 3, 16, 64)
    rolled = encode(circular, images.roll(8 * columns, -1), sample=False)
    assert largest(rolled, encode(circular, images, sample=False).roll(columns, -1)) < 1e-12


def test_the_stock_vae_is_not_equivariant(stock: AutoencoderKL) -> None:
    latents, images = random(1, 16, 4, 12), random(1, 3, 16, 64)
    assert largest(decode(stock, latents.roll(3, -1)), decode(stock, latents).roll(24, -1)) > 0.1
    a = encode(stock, images.roll(24, -1), sample=False)
    assert largest(a, encode(stock, images, sample=False).roll(3, -1)) > 0.1


def test_height_is_padded_with_zeros(stock: AutoencoderKL, circular: AutoencoderKL) -> None:
    """Every convolution against zero rows and wrapped columns written out."""
    downs = [m for m in circular.modules() if isinstance(m, Downsample2D)]
    assert len(downs) == 3
    for name, conv in circular.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        x = random(2, conv.in_channels, 6, 8)
        plain = stock.get_submodule(name)
        assert isinstance(plain, nn.Conv2d)
        if conv.kernel_size == (1, 1):
            assert torch.equal(conv(x), plain(x))
        elif conv.stride == (1, 1):
            wide = F.pad(torch.cat([x[..., -1:], x, x[..., :1]], -1), (0, 0, 1, 1))
            assert largest(conv(x), F.conv2d(wide, conv.weight, conv.bias)) < 1e-12
    for down in downs:
        x = random(2, down.channels, 6, 8)
        wide = F.pad(torch.cat([x, x[..., :1]], -1), (0, 0, 0, 1))
        expected = F.conv2d(wide, down.conv.weight, down.conv.bias, stride=2)
        assert largest(down(x), expected) < 1e-12


def test_none_undoes_it(stock: AutoencoderKL, circular: AutoencoderKL) -> None:
    latents, images = random(1, 16, 4, 12), random(1, 3, 16, 64)
    set_vae_wrap(circular, "circular")  # twice is once
    assert largest(decode(circular, latents), decode(stock, latents)) > 0.1
    set_vae_wrap(circular, "none")
    set_vae_wrap(circular, "none")
    assert torch.equal(decode(circular, latents), decode(stock, latents))
    assert torch.equal(encode(circular, images, sample=False), encode(stock, images, sample=False))
    assert {type(m) for m in circular.modules()} == {type(m) for m in stock.modules()}


def test_copies_and_files(stock: AutoencoderKL, circular: AutoencoderKL, tmp_path: Path) -> None:
    latents = random(1, 16, 4, 12)
    expected = decode(circular, latents)
    assert list(circular.state_dict()) == list(stock.state_dict())
    copied = copy.deepcopy(circular)
    assert torch.equal(decode(copied, latents), expected)
    set_vae_wrap(circular, "none")
    assert torch.equal(decode(copied, latents), expected)  # the copy stands alone
    copied.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert largest(decode(loaded, latents), decode(stock, latents)) < 1e-12
    set_vae_wrap(loaded, "circular")
    assert largest(decode(loaded, latents), expected) < 1e-12
    copied.load_state_dict(stock.state_dict())
    assert torch.equal(decode(copied, latents), expected)


def test_hooks_of_offloading_stay(stock: AutoencoderKL) -> None:
    """Convolutions that were wrapped by a hook before they are made circular."""
    from accelerate import cpu_offload

    vae = copy.deepcopy(stock)
    cpu_offload(vae, torch.device("cpu"))
    set_vae_wrap(vae, "circular")
    latents = random(1, 16, 4, 12)
    assert largest(decode(vae, latents.roll(3, -1)), decode(vae, latents).roll(24, -1)) < 1e-12


def test_unknown_mode(stock: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="vae_wrap is 'mirror'; use one of circular, none"):
        set_vae_wrap(stock, "mirror")  # pyright: ignore[reportArgumentType]


# ---- latents ------------------------------------------------------------------------------------


def test_scaling_and_posterior(stock: AutoencoderKL) -> None:
    images = random(2, 3, 16, 32)
    posterior = stock.encode(images).latent_dist
    assert largest(encode(stock, images, sample=False), (posterior.mode() - 0.1159) * 0.3611) == 0
    drawn = encode(stock, images, generator=torch.Generator().manual_seed(4))
    noise = torch.randn(
        posterior.mean.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    expected = (posterior.mean + posterior.std * noise - 0.1159) * 0.3611
    assert largest(drawn, expected) < 1e-12
    latents = random(1, 16, 2, 4)
    assert torch.equal(decode(stock, latents), stock.decode(latents / 0.3611 + 0.1159).sample)


def test_works_in_the_precision_of_the_vae(circular: AutoencoderKL) -> None:
    vae = copy.deepcopy(circular).float()
    latents = random(1, 16, 4, 12).half()
    decoded = decode(vae, latents)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decode(vae, latents.float()))
    assert encode(vae, random(1, 3, 16, 32).half(), sample=False).dtype == torch.float32


def test_pack_round_trip() -> None:
    latents = random(2, 16, 6, 10)
    tokens = pack(latents)
    assert tokens.shape == (2, 15, 64)
    cell = latents[1, :, 2:4, 4:6]  # rows 2, 3 and columns 4, 5: the token of row 1, column 2
    assert torch.equal(tokens[1, 1 * 5 + 2], cell.reshape(64))
    assert torch.equal(unpack(tokens, (3, 5)), latents)


# ---- tiles --------------------------------------------------------------------------------------


def test_tiles_do_not_know_the_seam(circular: AutoencoderKL) -> None:
    """Turned by a whole number of tiles, the result turns along: all borders are alike."""
    latents = random(2, 16, 4, 24)
    whole = decode(circular, latents, tile_columns=8)  # 4 tiles, 6 columns apart
    for columns in (6, 12, 18):
        rolled = decode(circular, latents.roll(columns, -1), tile_columns=8)
        assert largest(rolled, whole.roll(8 * columns, -1)) < 1e-5  # blended in float32
    off_border = decode(circular, latents.roll(3, -1), tile_columns=8)
    assert largest(off_border, whole.roll(24, -1)) > 1e-2


@pytest.mark.parametrize("mode", ["circular", "none"])
@pytest.mark.parametrize("tile", [5, 7, 8, 16, 23])
def test_tiles_add_up(
    stock: AutoencoderKL, monkeypatch: pytest.MonkeyPatch, mode: vae_module.VaeWrap, tile: int
) -> None:
    """With a decoder that works cell by cell, tiles give the whole: every weight sums to 1."""
    vae = copy.deepcopy(stock)
    set_vae_wrap(vae, mode)
    widths = []

    def enlarge(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        assert not vae_module.is_circular(vae) or latents.shape[-1] == 24
        widths.append(latents.shape[-1])
        return (latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2),)

    monkeypatch.setattr(vae, "decode", enlarge)
    latents = random(1, 16, 4, 24)
    tiled = decode(vae, latents, tile_columns=tile)
    assert set(widths) == {tile}
    assert len(widths) >= 24 / tile
    assert largest(tiled, decode(vae, latents)) < 1e-5
    assert vae_module.is_circular(vae) == (mode == "circular")


def test_inside_of_tiles_without_wrap(stock: AutoencoderKL) -> None:
    """Columns of one tile alone are what the stock VAE makes of that tile."""
    latents = random(1, 16, 4, 20)
    tiled = decode(stock, latents, tile_columns=8)  # tiles from columns 0, 6 and 12
    first, last = decode(stock, latents[..., :8]), decode(stock, latents[..., 12:])
    assert largest(tiled[..., :48], first[..., :48]) < 1e-5
    assert largest(tiled[..., -48:], last[..., -48:]) < 1e-5
    second = decode(stock, latents[..., 6:14])
    ramp = (torch.arange(16) + 0.5) / 16
    ramp = ramp**2 * (3 - 2 * ramp)
    blend = first[..., 48:] * (1 - ramp) + second[..., :16] * ramp
    assert largest(tiled[..., 48:64], blend) < 1e-5


@pytest.mark.parametrize("mode", ["circular", "none"])
def test_tiles_begin_without_a_step(
    stock: AutoencoderKL, monkeypatch: pytest.MonkeyPatch, mode: vae_module.VaeWrap
) -> None:
    """Tiles of different brightness: the change at their first and last columns, and elsewhere."""
    vae = copy.deepcopy(stock)
    set_vae_wrap(vae, mode)
    level = 0.0

    def paint(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        nonlocal level
        assert not return_dict
        level = 1 - level
        return (torch.full((1, 3, 32, 8 * latents.shape[-1]), level),)

    monkeypatch.setattr(vae, "decode", paint)
    row = decode(vae, random(1, 16, 4, 24), tile_columns=8)[0, 0, 0]
    steps = (row - row.roll(1)).abs()  # between a column and the one on its left
    # Tiles are 64 pixels wide; circular, each begins where the last but one ends.
    starts = [0, 48, 96, 144] if mode == "circular" else [40, 80, 128]  # of tiles, 64 pixels wide
    ends = [64, 112, 160, 16] if mode == "circular" else [64, 104, 144]
    assert row.max() - row.min() == 1
    assert steps[1:].max() > 0.05  # the blend itself
    assert steps[starts + ends].max() < 0.01


def test_wide_tiles_are_the_whole(circular: AutoencoderKL) -> None:
    latents = random(1, 16, 4, 12)
    assert torch.equal(decode(circular, latents, tile_columns=12), decode(circular, latents))


def test_circular_again_after_an_error(
    circular: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(circular, "decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        decode(circular, random(1, 16, 4, 12), tile_columns=4)
    assert vae_module.is_circular(circular)


def test_tile_mistakes(circular: AutoencoderKL) -> None:
    latents = random(1, 16, 4, 12)
    with pytest.raises(ValueError, match="tile_columns is 3; use 4 or more"):
        decode(circular, latents, tile_columns=3)
    circular.enable_tiling()
    with pytest.raises(ValueError, match="wrap around themselves"):
        decode(circular, latents)
    with pytest.raises(ValueError, match="wrap around themselves"):
        encode(circular, random(1, 3, 16, 32))
