"""Checkpointing, trained subsets, adapters, the cross-attention shortcut and placement."""

import copy
import json
import sys
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from torch.nn.parallel import DistributedDataParallel

from genex_explorer.checkpointing import (
    SCOPES,
    CheckpointedTemporalBlock,
    activation_bytes,
    enable_checkpointing,
)
from genex_explorer.cross_attention import (
    SingleTokenProcessor,
    idle_parameters,
    use_single_token_shortcut,
    use_stock_cross_attention,
)
from genex_explorer.memory import choose_device, place, set_attention
from genex_explorer.parameters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TRAINABLE,
    add_adapter,
    load_adapter,
    merged_state,
    save_adapter,
    select_trainable,
)
from genex_explorer.tiny import tiny_pipeline

FRAMES, HEIGHT, WIDTH, CONTEXT = 3, 8, 8, 32


def make_unet(widths=(32, 64)):
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=widths, layers_per_block=1, num_attention_heads=(2, 4),
        cross_attention_dim=CONTEXT, addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip


@pytest.fixture
def unet():
    return make_unet()


@pytest.fixture
def adapted(unet):
    """A UNet with an adapter that changes something."""
    add_adapter(unet, rank=2, alpha=6)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def make_inputs(batch=2, dtype=torch.float32, tokens=1):
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, FRAMES, 8, HEIGHT, WIDTH), (batch,), (batch, tokens, CONTEXT), (batch, 3)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run(unet, dtype=torch.float32):
    with torch.no_grad():
        return unet(*make_inputs(dtype=dtype)).sample


def gradients(unet, dtype=torch.float32):
    """Loss and the gradient of every trained parameter."""
    unet.zero_grad()
    loss = unet(*make_inputs(dtype=dtype)).sample.square().mean()
    loss.backward()
    named = unet.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def count_passes(unet):
    """How often the temporal blocks run in one training step; a set of one number."""
    # Hooks on a block itself miss recomputation, so its first layer is counted.
    first = [m.norm_in for m in unet.modules() if isinstance(m, TemporalBasicTransformerBlock)]
    calls = []
    hooks = [layer.register_forward_hook(lambda m, *_: calls.append(m)) for layer in first]
    gradients(unet)
    for hook in hooks:
        hook.remove()
    return {calls.count(layer) for layer in first}


# ---- checkpointing ------------------------------------------------------------------------------


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("trainable", ["temporal_transformer", "all", "lora"])
def test_checkpointing_changes_no_bit(unet, trainable, bfloat16):
    if trainable == "lora":
        add_adapter(unet, rank=2)
        for name, parameter in unet.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    select_trainable(unet, trainable)
    results = {}
    for scope in SCOPES:
        enable_checkpointing(unet, scope)
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            results[scope] = gradients(unet)
    loss, expected = results["none"]
    assert len(expected) == len([p for p in unet.parameters() if p.requires_grad])
    for scope in ("stock", "full"):
        assert torch.equal(results[scope][0], loss)
        assert results[scope][1].keys() == expected.keys()
        for name, gradient in results[scope][1].items():
            assert torch.equal(gradient, expected[name]), (scope, name)


def real_kept_bytes(unet):
    """Bytes kept for the backward pass in a real run: storages of saved tensors, less weights."""
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(*make_inputs(batch=1)).sample.mean()
    return sum(storage.nbytes() for storage in kept.values())


def test_full_scope_keeps_a_fraction(unet):
    select_trainable(unet, "temporal_transformer")
    kept = {}
    for scope in SCOPES:
        enable_checkpointing(unet, scope)
        kept[scope] = real_kept_bytes(unet)
    assert kept["full"] < 0.25 * kept["stock"]
    assert kept["stock"] < 0.75 * kept["none"]


@pytest.mark.parametrize("scope", SCOPES)
def test_activation_bytes_equals_a_real_run(unet, scope):
    select_trainable(unet, "temporal_transformer")
    counted = activation_bytes(unet, FRAMES, HEIGHT, WIDTH, scope)
    assert not unet.is_gradient_checkpointing
    enable_checkpointing(unet, scope)
    assert counted == pytest.approx(real_kept_bytes(unet), rel=1e-3)


def test_scopes_can_be_changed_and_survive_a_deepcopy(unet):
    keys = list(unet.state_dict())
    select_trainable(unet, "temporal_transformer")
    for scope, passes in (("full", 2), ("stock", 1), ("full", 2), ("none", 1)):
        enable_checkpointing(unet, scope)
        for network in (unet, copy.deepcopy(unet)):
            assert count_passes(network) == {passes}
            assert list(network.state_dict()) == keys
    assert not any(isinstance(module, CheckpointedTemporalBlock) for module in unet.modules())


def test_checkpointed_unet_saves_as_stock(unet, tmp_path):
    enable_checkpointing(unet, "full")
    unet.save_pretrained(tmp_path)
    loaded = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded), run(unet))
    assert count_passes(loaded) == {1}


def test_no_recomputation_without_gradients(unet, monkeypatch):
    enable_checkpointing(unet, "full")
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", None)
    assert run(unet).shape == (2, FRAMES, 4, HEIGHT, WIDTH)


def test_unknown_scope(unet):
    with pytest.raises(ValueError, match="scope 'half' is unknown; use one of none, stock, full"):
        enable_checkpointing(unet, "half")


@pytest.fixture
def process_group():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_with_checkpointing_adapter_and_shortcut(adapted, tmp_path):
    use_single_token_shortcut(adapted)
    enable_checkpointing(adapted, "full")
    chosen = select_trainable(adapted, "lora")
    _, expected = gradients(adapted)
    wrapped = DistributedDataParallel(adapted)
    for _ in range(2):  # the second step fails if the first left gradients out
        gradients(wrapped)
    assert [name for name, _ in select_trainable(wrapped, "lora")] == [name for name, _ in chosen]
    for name, parameter in chosen:
        assert torch.equal(parameter.grad, expected[name])
    save_adapter(wrapped, tmp_path)
    fresh = make_unet()
    load_adapter(fresh, tmp_path)
    assert merged_state(wrapped).keys() == merged_state(fresh).keys()


# ---- trained subsets ----------------------------------------------------------------------------


def test_subsets_by_name(unet):
    parts = {
        "temporal_transformer": ["temporal_transformer_block"],
        "temporal_all": ["temporal_transformer_block", "temporal_res", "time_mix", "time_pos"],
        "temporal+io+norm": ["temporal_transformer_block", "norm", "conv_in", "conv_out"],
        "all": [""],
    }
    assert parts.keys() | {"lora"} == TRAINABLE.keys()
    for name, substrings in parts.items():
        chosen = select_trainable(unet, name)
        expected = [n for n, _ in unet.named_parameters() if any(s in n for s in substrings)]
        assert [n for n, _ in chosen] == expected
        assert {n for n, p in unet.named_parameters() if p.requires_grad} == set(expected)
        assert all(p is unet.get_parameter(n) for n, p in chosen)


def test_subsets_that_do_not_exist(unet):
    with pytest.raises(ValueError, match="'spatial' is unknown; use one of temporal_transformer,"):
        select_trainable(unet, "spatial")
    with pytest.raises(ValueError, match="'lora' matches no parameter; add an adapter"):
        select_trainable(unet, "lora")


# ---- adapters -----------------------------------------------------------------------------------


def test_adapter_is_zero_at_first_and_lies_in_temporal_blocks(unet):
    before = run(unet)
    add_adapter(unet, rank=4)
    assert torch.equal(run(unet), before)
    chosen = select_trainable(unet, "lora")
    # 4 temporal blocks; attn1 and attn2 have 4 weights each, the MLP 2; each gets A and B.
    assert len(chosen) == 4 * (4 + 4 + 2) * 2
    assert all(".temporal_transformer_blocks." in name for name, _ in chosen)


def test_merged_state_is_base_plus_scaled_product(adapted):
    base = make_unet().state_dict()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    merged = merged_state(adapted)
    assert list(merged) == list(base)
    changed = 0
    for name, value in merged.items():
        module = name.removesuffix(".weight")
        down, up = (before.get(f"{module}.lora_{side}.default.weight") for side in "AB")
        if up is None:
            assert torch.equal(value, base[name])
        else:
            changed += 1
            expected = base[name].double() + 6 / 2 * up.double() @ down.double()
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
            assert not torch.equal(value, base[name])
    assert changed == 40
    assert all(torch.equal(before[name], value) for name, value in adapted.state_dict().items())
    stock = make_unet()
    stock.load_state_dict(merged)
    torch.testing.assert_close(run(stock), run(adapted), rtol=0, atol=2e-5)


def test_merged_state_without_adapter_is_the_state(unet):
    state = unet.state_dict()
    merged = merged_state(unet)
    assert list(merged) == list(state)
    assert all(torch.equal(merged[name], state[name]) for name in state)


def test_adapter_survives_saving(adapted, tmp_path):
    save_adapter(adapted, tmp_path / "adapter")
    loaded = make_unet()
    load_adapter(loaded, tmp_path / "adapter")
    assert torch.equal(run(loaded), run(adapted))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == sorted(
        [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    )


def test_peft_reads_the_adapter(adapted, tmp_path):
    from peft import PeftModel

    save_adapter(adapted, tmp_path)
    loaded = PeftModel.from_pretrained(make_unet(), str(tmp_path))
    assert torch.equal(run(loaded), run(adapted))


def test_adapter_of_another_base_is_refused(adapted, tmp_path):
    save_adapter(adapted, tmp_path)
    other = make_unet(widths=(64, 64))
    keys = list(other.state_dict())
    with pytest.raises(ValueError, match=r"another base: 54 tensors differ.*\(2, 32\).*\(2, 64\)"):
        load_adapter(other, tmp_path)
    assert list(other.state_dict()) == keys
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(ValueError, match=r"80 tensors differ"):
        load_adapter(make_unet(), tmp_path)


def test_adapter_errors(unet, adapted, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors is missing; give a"):
        load_adapter(unet, tmp_path)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(adapted, rank=2)
    plain = make_unet()
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(plain, tmp_path)
    with pytest.raises(ValueError, match="rank 0 and alpha None; both must be positive"):
        add_adapter(plain, rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[train\]"'):
        add_adapter(plain, rank=2)


# ---- single-token cross-attention ---------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_shortcut_equals_stock(unet, dtype, atol):
    unet.to(dtype)
    stock = run(unet, dtype)
    processors = list(unet.attn_processors.values())
    keys = list(unet.state_dict())
    use_single_token_shortcut(unet)
    use_single_token_shortcut(unet)  # once more changes nothing
    shortcuts = [p for p in unet.attn_processors.values() if isinstance(p, SingleTokenProcessor)]
    assert len(shortcuts) == len(processors) / 2 == 8
    torch.testing.assert_close(run(unet, dtype), stock, rtol=0, atol=atol)
    assert list(unet.state_dict()) == keys
    use_stock_cross_attention(unet)
    assert list(unet.attn_processors.values()) == processors
    assert torch.equal(run(unet, dtype), stock)


def test_shortcut_has_the_gradients_of_stock(unet):
    unet.double()
    stock_loss, stock = gradients(unet, torch.float64)
    use_single_token_shortcut(unet)
    loss, ours = gradients(unet, torch.float64)
    idle = idle_parameters(unet)
    assert len(idle) == 8 * 4
    assert stock.keys() - ours.keys() == idle
    assert max(float(stock[name].abs().max()) for name in idle) < 1e-17
    torch.testing.assert_close(loss, stock_loss, rtol=1e-13, atol=0)
    for name, gradient in ours.items():
        scale = float(stock[name].abs().max())
        torch.testing.assert_close(gradient, stock[name], rtol=0, atol=1e-11 * scale + 1e-17)


def test_contexts_of_spatial_and_temporal_attention(unet):
    """Spatial attention gets a row for each frame, temporal one for each pixel of the clip."""
    seen = {}

    def note(name):
        def hook(_module, _args, kwargs):
            seen[name] = kwargs["encoder_hidden_states"]

        return hook

    block = "down_blocks.0.attentions.0"
    for kind in ("transformer_blocks", "temporal_transformer_blocks"):
        attention = unet.get_submodule(f"{block}.{kind}.0.attn2")
        attention.register_forward_pre_hook(note(kind), with_kwargs=True)
    run(unet)
    token = make_inputs()[2]
    pixels = HEIGHT * WIDTH
    assert torch.equal(seen["transformer_blocks"], token.repeat_interleave(FRAMES, 0))
    assert torch.equal(seen["temporal_transformer_blocks"], token.repeat_interleave(pixels, 0))


def test_shortcut_refuses_several_tokens(unet):
    use_single_token_shortcut(unet)
    with pytest.raises(ValueError, match="context has 2 tokens, but the single-token shortcut"):
        unet(*make_inputs(tokens=2))


def test_idle_parameters_are_not_trained(unet):
    assert idle_parameters(unet) == set()
    before = {name for name, _ in select_trainable(unet, "temporal_transformer")}
    use_single_token_shortcut(unet)
    after = {name for name, _ in select_trainable(unet, "temporal_transformer")}
    left_out = {name.split(".0.", 3)[-1] for name in before - after}
    assert left_out == {"norm2.weight", "norm2.bias", "attn2.to_q.weight", "attn2.to_k.weight"}
    _, learning = gradients(unet)
    assert learning.keys() == after


# ---- placement ----------------------------------------------------------------------------------


def test_devices():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.backends.mps.is_available():
        assert choose_device() == torch.device(expected)
        with pytest.raises(ValueError, match="mps is not available"):
            choose_device("mps")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'gpu' is unknown; use auto, cpu, cuda, cuda:1 or mps"):
        choose_device("gpu")


def test_auto_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


class Recorder:
    """Stands in for a pipeline and its UNet: notes what is called on them."""

    def __init__(self, unet):
        self.unet, self.calls = unet, []
        unet.compile = lambda: self.calls.append(("compile",))

    def __getattr__(self, name):
        def note(*args, **kwargs):
            self.calls.append((name, *args, *kwargs.values()))

        return note


CUDA, MPS, CPU = torch.device("cuda"), torch.device("mps"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "offload", "call"),
    [
        (CUDA, "none", ("to", CUDA)),
        (CUDA, "model", ("enable_model_cpu_offload", CUDA)),
        (CUDA, "sequential", ("enable_sequential_cpu_offload", CUDA)),
        (CUDA, "group", ("enable_group_offload", CUDA, "leaf_level", True)),
        (MPS, "group", ("enable_group_offload", MPS, "leaf_level", False)),
    ],
)
def test_offload_is_what_diffusers_calls_it(unet, device, offload, call):
    recorder = Recorder(unet)
    place(recorder, device, torch.float16, offload=offload)
    assert recorder.calls == [("to", torch.float16), call]


def test_compilation_comes_last(unet):
    recorder = Recorder(unet)
    place(recorder, CUDA, torch.bfloat16, offload="model", compile=True)
    assert [call[0] for call in recorder.calls] == ["to", "enable_model_cpu_offload", "compile"]


@pytest.mark.parametrize(
    ("device", "dtype", "options", "message"),
    [
        (CPU, torch.float32, {"offload": "group"}, "offload 'group' needs an accelerator"),
        (CPU, torch.float16, {}, "float16 is not for the device cpu; use float32 or bfloat16"),
        (CUDA, torch.float16, {"offload": "sequential", "compile": True}, "use offload model or"),
        (CPU, torch.float32, {"offload": "disk"}, "'disk' is unknown; use one of none, model"),
        (CPU, torch.float32, {"attention": "flash"}, "'flash' is unknown; use one of sdpa, eager"),
    ],
)
def test_combinations_that_cannot_work(unet, device, dtype, options, message):
    recorder = Recorder(unet)
    with pytest.raises(ValueError, match=message):
        place(recorder, device, dtype, **options)
    assert recorder.calls == []


def test_a_real_pipeline_is_placed():
    pipeline = tiny_pipeline()
    place(pipeline, CPU, torch.bfloat16, attention="eager")
    for network in (pipeline.unet, pipeline.vae, pipeline.image_encoder):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert {type(p) for p in pipeline.unet.attn_processors.values()} == {AttnProcessor}


def test_attention_kinds_agree_and_keep_the_shortcut(unet):
    use_single_token_shortcut(unet)
    outputs = {}
    for kind, processor in (("eager", AttnProcessor), ("sdpa", AttnProcessor2_0)):
        set_attention(unet, kind)
        kinds = [type(p) for p in unet.attn_processors.values()]
        assert kinds.count(processor) == kinds.count(SingleTokenProcessor) == 8
        outputs[kind] = run(unet)
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], rtol=0, atol=1e-5)


def test_missing_xformers_is_one_warning(unet, caplog, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    set_attention(unet, "eager")
    set_attention(unet, "xformers")
    assert [record.message for record in caplog.records] == [
        "xformers is not installed or there is no CUDA device; using sdpa instead"
    ]
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor2_0}


def test_tiny_unet_starts_as_a_copy_of_the_first_frame() -> None:
    from genex_explorer.tiny import start_as_copy, tiny_unet

    torch.manual_seed(0)
    unet, scale, sigma = tiny_unet(), 0.4, 200.0
    start_as_copy(unet, scale)
    first = torch.randn(1, 4, 8, 16)
    clip = first[:, None].expand(-1, 8, -1, -1, -1)
    noisy = clip + sigma * torch.randn(clip.shape)
    network_input = torch.cat([noisy / (sigma**2 + 1) ** 0.5, clip / scale], 2)
    with torch.no_grad():
        velocity = unet(
            network_input, 0.25 * torch.tensor(sigma).log(), torch.randn(1, 1, 32),
            torch.tensor([[6.0, 127.0, 0.02]]),
        ).sample  # fmt: skip
    predicted = noisy / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * velocity
    assert (predicted - clip).square().mean() < 0.005 * clip.square().mean()
