"""Memory modes: counts and estimates of the released model, 8-bit storage, streaming, refusals."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import HookRegistry
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dit360 import memory
from dit360.memory import MemoryMode, choose_device, choose_dtype, estimate
from dit360.modulation import precompute_modulation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 1e9


@pytest.fixture(scope="module")
def released() -> dict[str, nn.Module]:
    """The parts of FLUX.1-dev without weights, by their published configurations (spec 4.1)."""
    with torch.device("meta"):
        return {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_attention_heads=12,
                    num_hidden_layers=12,
                    projection_dim=768,
                )
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    d_model=4096,
                    d_kv=64,
                    d_ff=10240,
                    num_layers=24,
                    num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
        }


@pytest.fixture
def pipeline(micro_flux: Path) -> FluxPipeline:
    loaded = FluxPipeline.from_pretrained(micro_flux)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def velocity(pipeline: FluxPipeline) -> Tensor:
    """One evaluation of the transformer, (1, 8, 64)."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pipeline.transformer(
            hidden_states=torch.randn(1, 8, 64, generator=draw),
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([2.8]),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
            pooled_projections=torch.randn(1, 32, generator=draw),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# ---- estimates ----------------------------------------------------------------------------------


def test_p1_parameters_of_the_released_model(released: dict[str, nn.Module]) -> None:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in released.items()}
    assert counts == {
        "transformer": 11_901_408_320,
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
    }


@pytest.mark.parametrize(
    ("mode", "dtype", "device", "host", "peak"),
    [
        # Spec 12.2; there the peaks are estimates too, hence the wide margins below.
        ("full", torch.bfloat16, 33.74, 0, 37),
        ("full", torch.float16, 35.75, 0, 39),
        ("4bit", torch.bfloat16, 6.7 + 2.9 + 0.25 + 0.17, 0, 12.5),
        ("balanced", torch.bfloat16, 0.17, 33.57, 4.5),
        # 8 bits but for norms (their modulation: 6.5 GB), the ends, T5's `wo` and embedding.
        ("low", torch.bfloat16, 0.17, 21.5, 4),
        ("int8", torch.bfloat16, 11.98 + 4.90 + 0.25 + 0.17, 0, 20.5),
    ],
)
def test_estimates_of_the_released_model(
    released: dict[str, nn.Module],
    mode: MemoryMode,
    dtype: torch.dtype,
    device: float,
    host: float,
    peak: float,
) -> None:
    found = estimate(released, mode, dtype, planned=False, cpu=False)
    assert found.device / GB == pytest.approx(device, abs=0.05)
    assert found.host / GB == pytest.approx(host, abs=0.3)
    assert found.peak / GB == pytest.approx(peak, abs=1)


def test_precomputed_modulation_leaves_6_5_gb(released: dict[str, nn.Module]) -> None:
    whole = estimate(released, "full", torch.bfloat16, planned=False, cpu=False)
    planned = estimate(released, "full", torch.bfloat16, planned=True, cpu=False)
    assert whole.device - planned.device == planned.host == 2 * (3_228_567_552 + 18_880_512)
    streamed = estimate(released, "balanced", torch.bfloat16, planned=True, cpu=False)
    assert (
        streamed.peak
        <= estimate(released, "balanced", torch.bfloat16, planned=False, cpu=False).peak
    )


def test_precomputed_modulation_with_int8_stays_in_bfloat16(released: dict[str, nn.Module]) -> None:
    whole = estimate(released, "int8", torch.bfloat16, planned=False, cpu=False)
    planned = estimate(released, "int8", torch.bfloat16, planned=True, cpu=False)
    inner = 3072
    rows = (19 * 2 * 6 + 38 * 3) * inner  # of norm1, norm1_context and the norm of single blocks
    # Integers, scales and zero points of 5 bytes, biases; the last norm's layer is never quantised.
    assert whole.device - planned.device == rows * (inner + 5 + 2) + 2 * 18_880_512
    assert planned.host == 2 * (3_228_567_552 + 18_880_512)


def test_without_text_encoders_9_8_gb_less(released: dict[str, nn.Module]) -> None:
    parts = {name: part for name, part in released.items() if "text" not in name}
    whole = estimate(released, "full", torch.bfloat16, planned=False, cpu=False)
    found = estimate(parts, "full", torch.bfloat16, planned=False, cpu=False)
    assert (whole.device - found.device) / GB == pytest.approx(9.77, abs=0.01)


def stored_bytes(parameter: Tensor) -> int:
    """Of a parameter, or of the tensors in a quantised one."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return parameter.numel() * parameter.element_size()
    return sum(stored_bytes(getattr(parameter, name)) for name in parameter.__tensor_flatten__()[0])


@pytest.mark.parametrize(
    ("mode", "dtype", "planned"),
    [
        ("full", torch.bfloat16, False),
        ("low", torch.float32, False),
        ("int8", torch.float32, False),
        ("int8", torch.bfloat16, False),
        ("int8", torch.bfloat16, True),
    ],
)
def test_counted_bytes_are_those_of_loaded_weights(
    micro_flux: Path, mode: MemoryMode, dtype: torch.dtype, planned: bool
) -> None:
    parts = memory.meta_parts(str(micro_flux))
    expected = estimate(parts, mode, dtype, planned=planned, cpu=True)
    pipeline = FluxPipeline.from_pretrained(micro_flux, dtype=dtype)
    modules = [getattr(pipeline, part) for part in parts]
    if planned:
        plan = precompute_modulation(pipeline)
        modules += [layer.layer for layer in plan.planned]  # out of reach of the transformer
    memory.place(pipeline, mode, CPU, dtype)
    found = sum(stored_bytes(p) for module in modules for p in module.parameters())
    assert expected.device == found
    assert expected.host == 0


def test_description(released: dict[str, nn.Module]) -> None:
    line = estimate(released, "full", torch.bfloat16, planned=True, cpu=False).describe(
        "full", CUDA
    )
    assert line == (
        "memory full: weights 27.2 GB on cuda, 6.5 GB in main memory; "
        "peak about 30.5 GB at 1024 x 2048"
    )
    assert "weights 33.7 GB in main memory; peak" in estimate(
        released, "full", torch.bfloat16, planned=True, cpu=True
    ).describe("full", CPU)


# ---- what the modes do --------------------------------------------------------------------------


def test_8_bit_storage_changes_little(pipeline: FluxPipeline) -> None:
    expected = velocity(pipeline)
    memory.place(pipeline, "low", CPU, torch.float32)
    block = pipeline.transformer.transformer_blocks[0]
    assert block.attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert block.ff.net[2].weight.dtype == torch.float8_e4m3fn
    assert block.norm1.linear.weight.dtype == torch.float32
    assert pipeline.transformer.proj_out.weight.dtype == torch.float32
    error = relative_error(velocity(pipeline), expected)
    assert 1e-4 < error < 0.03  # spec 10: 0.025 with the ends of the network in 8 bits too


def test_8_bit_text_encoder(pipeline: FluxPipeline) -> None:
    expected, pooled, _ = pipeline.encode_prompt("a room", None, max_sequence_length=16)
    memory.store_in_8_bits(pipeline, torch.float32)
    layer = pipeline.text_encoder_2.encoder.block[0].layer
    assert layer[0].SelfAttention.q.weight.dtype == torch.float8_e4m3fn
    assert layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    found, same, _ = pipeline.encode_prompt("a room", None, max_sequence_length=16)
    assert relative_error(found, expected) < 0.06
    assert torch.equal(pooled, same)


def test_an_adapter_must_be_fused_before_8_bits(pipeline: FluxPipeline, micro_lora: Path) -> None:
    """Why `open_pipeline` has its order: fused and unloaded first, the error stays small."""
    from dit360.lora import load_lora

    load_lora(pipeline, micro_lora)
    expected = velocity(pipeline)
    pipeline.transformer.fuse_lora()
    pipeline.transformer.unload_lora()
    assert relative_error(velocity(pipeline), expected) < 1e-5
    memory.place(pipeline, "low", CPU, torch.float32)
    assert relative_error(velocity(pipeline), expected) < 0.03


def test_int8_rounds_to_the_nearest_step_of_a_row(pipeline: FluxPipeline) -> None:
    expected = velocity(pipeline)
    layers = {
        name: layer.weight.detach().clone()
        for name, layer in pipeline.transformer.named_modules()
        if isinstance(layer, nn.Linear)
    }
    pipeline.text_encoder_2 = None  # as with a text cache
    memory.place(pipeline, "int8", CPU, torch.float32)
    full = []
    for name, weight in layers.items():
        found = pipeline.transformer.get_submodule(name).weight
        if type(found) is nn.Parameter:
            full.append(name)
            continue
        steps = weight.abs().amax(1, keepdim=True) / 127.5  # -128..127
        assert found.qdata.dtype == torch.int8
        torch.testing.assert_close(found.scale, steps, rtol=1e-6, atol=0)
        off = (found.dequantize() - weight).abs() / steps
        assert 0.4 < off.max() < 0.501
    assert {name.partition(".")[0] for name in full} == {
        "time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"
    }  # fmt: skip
    # Weights are uniform to their largest, so that rounding has 2/255/sqrt(12) of that and the
    # weights 1/sqrt(3): 0.4 % a layer. The residual stream, which is not rounded, dilutes it.
    assert 1e-5 < relative_error(velocity(pipeline), expected) < 1 / 255


def test_int8_text_encoder(pipeline: FluxPipeline) -> None:
    expected, pooled, _ = pipeline.encode_prompt("a room", None, max_sequence_length=16)
    memory.quantise_to_int8(pipeline, CPU)
    layer = pipeline.text_encoder_2.encoder.block[0].layer
    for linear in (layer[0].SelfAttention.q, layer[1].DenseReluDense.wo):
        assert linear.weight.qdata.dtype == torch.int8
    found, same, _ = pipeline.encode_prompt("a room", None, max_sequence_length=16)
    # The largest of a row of normal numbers is about 3 deviations: rounding has 6/255/sqrt(12).
    assert 1e-4 < relative_error(found, expected) < 0.03
    assert torch.equal(pooled, same)


def test_int8_would_overflow_in_float16() -> None:
    """Why that is refused: 64 weights of 127 steps times 100 are above 65504 before the scale."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(64, 1, bias=False, dtype=torch.float16)
    nn.init.constant_(layer.weight, 0.05)
    x = torch.full((1, 64), 100.0, dtype=torch.float16)
    assert layer(x).item() == pytest.approx(320, rel=1e-3)
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    assert layer(x).isinf().all()


def test_streaming_hooks_every_block_and_changes_nothing(pipeline: FluxPipeline) -> None:
    def call() -> Tensor:
        return pipeline(
            "a room", height=64, width=128, num_inference_steps=2, output_type="pt",
            max_sequence_length=16, generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    expected = call()
    memory.stream_weights(pipeline, CPU)
    blocks = [
        *pipeline.transformer.transformer_blocks,
        *pipeline.transformer.single_transformer_blocks,
    ]
    for module in (*blocks, pipeline.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q):
        assert "group_offloading" in HookRegistry.check_if_exists_or_initialize(module).hooks
    assert torch.equal(call(), expected)


def test_streaming_does_without_text_encoders(pipeline: FluxPipeline) -> None:
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    memory.stream_weights(pipeline, CPU)


def test_4bit_quantises_transformer_and_t5() -> None:
    pytest.importorskip("bitsandbytes")
    config = memory.quantization("4bit", torch.bfloat16)
    assert set(config.quant_mapping) == {"transformer", "text_encoder_2"}
    for one in config.quant_mapping.values():
        assert one.bnb_4bit_quant_type == "nf4"
        assert one.bnb_4bit_compute_dtype == torch.bfloat16


def test_quantised_modes_need_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.quantization("low", torch.bfloat16) is None
    assert memory.quantization("int8", torch.bfloat16) is None  # rounded after loading
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda _: None)
    for mode, package in (("int8", "torchao"), ("4bit", "bitsandbytes")):
        message = rf"^--memory {mode} needs {package}; pip install -e \"dit360\[quant\]\"$"
        with pytest.raises(ImportError, match=message):
            memory.check_memory_mode(mode, CUDA, torch.bfloat16)
    memory.check_memory_mode("low", CUDA, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["balanced", "low", "int8"])
def test_modes_on_the_device(pipeline: FluxPipeline, mode: MemoryMode) -> None:
    expected = pipeline.to("cuda")("a room", height=64, width=128, num_inference_steps=2)
    memory.place(pipeline.to("cpu"), mode, CUDA, torch.float32)
    found = pipeline("a room", height=64, width=128, num_inference_steps=2)
    assert found.images[0].size == expected.images[0].size


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "device", "dtype", "message"),
    [
        ("tight", "cpu", "fp32", "--memory tight is unknown; use one of full, .*low, int8, 4bit"),
        ("balanced", "cpu", "fp32", "CUDA device, the device is cpu; use full, low or int8$"),
        ("4bit", "mps", "bf16", "needs a CUDA device, the device is mps; use full$"),
        ("low", "mps", "bf16", "8-bit floats, which mps lacks"),
        ("int8", "mps", "bf16", "not for mps; use full"),
        ("int8", "cuda", "fp16", "int8 overflows in fp16; use --dtype bf16"),
    ],
)
def test_modes_that_cannot_run(mode: str, device: str, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory.check_memory_mode(mode, torch.device(device), memory.DTYPES[dtype])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == CPU
    with pytest.raises(ValueError, match="cuda:1 is not available on this machine"):
        choose_device("cuda:1")
    with pytest.raises(ValueError, match="--device gpu is unknown"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device() == CUDA
    with pytest.raises(ValueError, match="cuda:1: there are 1 CUDA devices"):
        choose_device("cuda:1")


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(ValueError, match="fp16 is not for the CPU"):
        choose_dtype("fp16", CPU)
    with pytest.raises(ValueError, match="fp8 is unknown"):
        choose_dtype("fp8", CPU)
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, s=supported, **__: s)
        assert choose_dtype("auto", CUDA) == expected
