"""Numbers of the real networks, counted on the meta device, and of the miniature of row 4."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genex_explorer.checkpointing import activation_bytes
from genex_explorer.cross_attention import (
    idle_parameters,
    use_single_token_shortcut,
    use_stock_cross_attention,
)
from genex_explorer.parameters import select_trainable


def count(parameters):
    sizes = [parameter.numel() for parameter in parameters]
    return len(sizes), sum(sizes)


@pytest.fixture(scope="module")
def real_unet():
    with torch.device("meta"):
        return UNetSpatioTemporalConditionModel(sample_size=96).to("meta")  # blends too


@pytest.fixture
def small_unet():
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        num_attention_heads=(2, 4), addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip


def test_row_1_real_unet(real_unet):
    assert count(real_unet.parameters()) == (1_428, 1_524_623_082)
    assert len(real_unet.state_dict()) == 1_428


def test_row_2_trained_subset_of_the_real_unet(real_unet):
    chosen = dict(select_trainable(real_unet, "temporal_transformer"))
    assert count(chosen.values()) == (416, 397_620_480)
    modules = [name.split(".temporal_transformer_blocks.")[0] for name in chosen]
    assert len(set(modules)) == 16
    assert all(modules.count(module) == 26 for module in modules)


def test_row_3_real_vae_and_clip():
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            sample_size=768, down_block_types=("DownEncoderBlock2D",) * 4,
        )  # fmt: skip
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                num_attention_heads=16, image_size=224, patch_size=14, hidden_act="gelu",
                projection_dim=1024,
            )
        )  # fmt: skip
    assert count(vae.parameters()) == (374, 97_742_847)
    assert count(vae.encoder.parameters())[1] == 34_163_592
    assert count(vae.decoder.parameters())[1] == 63_579_183
    assert count(vae.quant_conv.parameters())[1] == 72
    assert count(clip.parameters()) == (520, 632_076_800)


def test_row_4_small_unet(small_unet):
    assert count(small_unet.parameters()) == (424, 1_308_432)
    chosen = dict(select_trainable(small_unet, "temporal_transformer"))
    assert count(chosen.values()) == (104, 229_760)


def test_row_5_shape_of_the_output(small_unet):
    inputs = torch.randn(1, 3, 8, 8, 8), torch.ones(1), torch.randn(1, 1, 32), torch.ones(1, 3)
    with torch.no_grad():
        assert small_unet(*inputs).sample.shape == (1, 3, 4, 8, 8)


@pytest.mark.parametrize("kind", ["transformer_blocks", "temporal_transformer_blocks"])
def test_row_24_one_token_needs_no_queries(small_unet, kind):
    name = f"down_blocks.0.attentions.0.{kind}.0.attn2"
    attention = small_unet.double().get_submodule(name)
    queries = torch.randn(6, 64, 32, dtype=torch.float64)
    token = torch.randn(6, 1, 32, dtype=torch.float64)
    with torch.no_grad():
        stock = attention(queries, encoder_hidden_states=token)
        values = attention.to_v(token).expand(-1, 64, -1).contiguous()
        closed_form = attention.to_out[0](values)
        use_single_token_shortcut(small_unet)
        ours = attention(queries, encoder_hidden_states=token)
    assert torch.equal(stock, closed_form)
    # We project one row instead of 64; another matrix kernel sums it in another order.
    torch.testing.assert_close(ours, stock, rtol=0, atol=2e-15)


def test_parameters_split_as_measured(real_unet):
    parts = {
        "temporal_res_block": 159.3e6,
        ".transformer_blocks": 248.8e6,
        "time_pos_embed": 99.2e6,
        "samplers": 52.5e6,
    }
    for part, expected in parts.items():
        named = [p for name, p in real_unet.named_parameters() if part in name]
        assert count(named)[1] == pytest.approx(expected, abs=0.06e6)
    mixers = [p for name, p in real_unet.named_parameters() if "time_mixer" in name]
    assert count(mixers) == (38, 38)


def test_names_and_shapes_of_official_checkpoints(real_unet):
    shapes = {name: tuple(p.shape) for name, p in real_unet.state_dict().items()}
    level = "down_blocks.0"
    assert shapes["conv_in.weight"] == (320, 8, 3, 3)
    assert shapes[f"{level}.resnets.0.spatial_res_block.conv1.weight"] == (320, 320, 3, 3)
    assert shapes[f"{level}.resnets.0.temporal_res_block.conv1.weight"] == (320, 320, 3, 1, 1)
    assert shapes[f"{level}.resnets.0.time_mixer.mix_factor"] == (1,)
    assert shapes[f"{level}.attentions.0.proj_in.weight"] == (320, 320)
    assert shapes[f"{level}.attentions.0.time_pos_embed.linear_1.weight"] == (1280, 320)
    block = f"{level}.attentions.0.temporal_transformer_blocks.0"
    assert shapes[f"{block}.attn2.to_v.weight"] == (320, 1024)
    assert shapes[f"{block}.attn1.to_out.0.bias"] == (320,)
    assert shapes[f"{block}.ff_in.net.0.proj.weight"] == (2560, 320)


def test_parameters_that_never_learn(real_unet):
    """25 194 880 of the trained parameters feed a softmax over one key."""
    trained = dict(select_trainable(real_unet, "temporal_transformer"))
    use_single_token_shortcut(real_unet)
    idle = idle_parameters(real_unet) & trained.keys()
    kept = dict(select_trainable(real_unet, "temporal_transformer"))
    use_stock_cross_attention(real_unet)
    assert count(trained[name] for name in idle) == (64, 25_194_880)
    assert kept.keys() == trained.keys() - idle


@pytest.mark.parametrize(
    ("size", "scope", "gib"),
    [
        ((25, 72, 128), "none", 97.8),
        ((25, 72, 128), "stock", 62.2),
        ((25, 72, 128), "full", 6.8),
        ((25, 40, 64), "full", 1.9),
        ((14, 72, 128), "full", 3.9),
    ],
)
def test_memory_kept_for_the_backward_pass(real_unet, size, scope, gib):
    """Section 12.2, whose counts were taken with another attention kernel: 3 % are allowed."""
    bfloat16 = real_unet.to(torch.bfloat16)
    select_trainable(bfloat16, "temporal_transformer")
    assert activation_bytes(bfloat16, *size, scope) / 2**30 == pytest.approx(gib, rel=0.03)


def test_shortcut_saves_3_tflop(real_unet):
    def forward_tflop():
        inputs = [(1, 25, 8, 72, 128), (1,), (1, 1, 1024), (1, 3)]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            real_unet(*(torch.empty(s, device="meta", dtype=real_unet.dtype) for s in inputs))
        return counter.get_total_flops() / 1e12

    before = forward_tflop()
    use_single_token_shortcut(real_unet)
    saved = before - forward_tflop()
    use_stock_cross_attention(real_unet)
    assert before == pytest.approx(80, rel=0.02)
    assert saved == pytest.approx(3.0, abs=0.1)
