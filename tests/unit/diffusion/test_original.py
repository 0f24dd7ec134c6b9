"""Single files in their authors' layouts: recognised by their headers, at the sizes of the published models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import original_files
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado_models.diffusion.original.assemble import as_pipeline, tokenizers_wanted
from kamado_models.diffusion.original.convert import for_diffusers, for_transformers
from kamado_models.diffusion.original.kinds import KINDS, is_known, load_kind, recognised

PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    },
    "sdxl-refiner": {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840},
    "sd3": {
        "vae": 83_819_683, "text_encoder": 123_650_304, "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "flux": {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480},
}  # fmt: skip
"""Of the published models."""
SD3_VARIANTS: dict[str, dict[str, Any]] = {
    "medium": {"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192},
    "3.5-medium": {
        "num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    "3.5-large": {"num_layers": 38, "num_attention_heads": 38, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A tensor of a file of which only the header is there."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    nbytes: int = 0

    def read(self) -> torch.Tensor:
        raise AssertionError(f"{self.name} was read")

    def __getitem__(self, index: object) -> torch.Tensor:
        raise AssertionError(f"{self.name} was read")


def model_of(library: str, name: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    with torch.device("meta"):
        if library == "diffusers":
            return getattr(diffusers, name).from_config(dict(config))
        kind = getattr(transformers, name)
        return kind(kind.config_class.from_dict(dict(config)))


def entries(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(name, "F16", tuple(tensor.shape), Path("x.safetensors"), 0, 2 * tensor.numel())
        for name, tensor in tensors.items()
    }


def checkpoint(tensors: Mapping[str, TensorEntry], **metadata: str) -> Checkpoint:
    return Checkpoint(
        reference="x.safetensors", root=Path("x.safetensors"), layout="safetensors", config={}, metadata=metadata,
        tensors=tensors, files={},
    )  # fmt: skip


def assert_fits(pipeline: Checkpoint, component: str, model: Any) -> None:
    """Every tensor of the file has its place in the model, and the other way round."""
    config = pipeline.metadata["components"][component]
    again = model_of(*pipeline.config[component], config)
    wanted = {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()}
    assert wanted == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{component}/"
    given = {n.removeprefix(prefix): Shape(n, e.shape) for n, e in pipeline.tensors.items() if n.startswith(prefix)}
    if pipeline.config[component][0] == "diffusers":
        made = for_diffusers(again, given, "x")
    else:
        made = for_transformers(type(model), model.config, given, "x")
        flat = "text_model." if not any(name.startswith("text_model.") for name in wanted) else ""
        made = {name.removeprefix(flat): tensor for name, tensor in made.items()}
        wanted.pop("encoder.embed_tokens.weight", None)
    assert {name: tensor.shape for name, tensor in made.items()} == wanted


def component_models(kind: str) -> dict[str, Any]:
    """The parts of a kind at full size, on the meta device; transformers are left out, whose sizes vary."""
    return {
        name: model_of(*part.kind, part.config | ({"in_channels": 4} if name == "unet" else {}))
        for name, part in load_kind(kind).parts.items()
        if name != "transformer"
    }


LAYOUT_OF = {"sd1": "sd15", "sdxl": "sdxl", "sdxl-refiner": "sdxl-refiner", "sd3": "sd3", "flux": "flux"}


def file_of(kind: str, models: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    layout = original_files.LAYOUTS["sd2" if kind == "sd2" else LAYOUT_OF[kind]]
    return {
        name: tensor for part, write in layout.items() if part in models for name, tensor in write(models[part]).items()
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_unets_of_published_sizes(kind: str) -> None:
    models = component_models(kind)
    assert {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()} == PARAMETERS[kind]
    tensors = file_of(kind, models)
    tensors |= {f"model_ema.{index}": torch.empty(1) for index in range(3)} | {"global_step": torch.empty(())}
    if kind == "sd2":  # what only the last layer's states are for
        tensors |= {"cond_stage_model.model.transformer.resblocks.23.ln_1.weight": torch.empty(1024)}
        tensors |= {"cond_stage_model.model.text_projection": torch.empty(1024, 1024)}
    found = recognised(entries(tensors))
    assert found is not None and (found.kind.name, found.channels) == (kind, 4)
    pipeline = as_pipeline(checkpoint(entries(tensors)))
    assert pipeline.config["_class_name"] == found.pipeline
    for name, model in models.items():
        assert_fits(pipeline, name, model)
        stored = sum(e.numel for key, e in pipeline.tensors.items() if key.startswith(f"{name}/"))
        assert stored == PARAMETERS[kind][name]
    alone = recognised({name: e for name, e in entries(tensors).items() if name.startswith("model.diffusion_model.")})
    assert alone is not None and alone.kind.name == kind, "by its width"


@pytest.mark.parametrize("variant", SD3_VARIANTS)
@pytest.mark.parametrize("prefixed", [True, False])
def test_stable_diffusion_3(variant: str, prefixed: bool) -> None:
    config = dict(load_kind("sd3").parts["transformer"].config) | SD3_VARIANTS[variant] | {
        "in_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
        "caption_projection_dim": 64 * SD3_VARIANTS[variant]["num_attention_heads"],
    }  # fmt: skip
    model = model_of("diffusers", "SD3Transformer2DModel", config)
    tensors = original_files.sd3(model)
    if not prefixed:
        tensors = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in tensors.items()}
    rest = component_models("sd3")
    assert {n: sum(p.numel() for p in m.parameters()) for n, m in rest.items()} == PARAMETERS["sd3"]
    whole = entries(tensors | file_of("sd3", rest))
    pipeline = as_pipeline(checkpoint(whole))
    for name, part in (rest | {"transformer": model}).items():
        assert_fits(pipeline, name, part)
    without = {name: e for name, e in whole.items() if "t5xxl" not in name}
    left = as_pipeline(checkpoint(without))
    assert left.config["text_encoder_3"] == left.config["tokenizer_3"] == [None, None]
    assert tokenizers_wanted(checkpoint(whole))[0] == ("tokenizer", "tokenizer_2", "tokenizer_3")
    assert tokenizers_wanted(checkpoint(without))[0] == ("tokenizer", "tokenizer_2")


def flux_model(*, guidance: bool = True, channels: int = 64, layers: tuple[int, int] = (2, 2)) -> Any:
    config = dict(load_kind("flux").parts["transformer"].config) | {
        "in_channels": channels, "out_channels": 64, "num_layers": layers[0], "num_single_layers": layers[1],
        "guidance_embeds": guidance,
    }  # fmt: skip
    return model_of("diffusers", "FluxTransformer2DModel", config)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux(prefix: str) -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    model = flux_model()
    tensors = original_files.flux(model, prefix)
    rest = component_models("flux")
    whole = entries(tensors | file_of("flux", rest))
    pipeline = as_pipeline(checkpoint(whole))
    for name, part in (rest | {"transformer": model}).items():
        assert_fits(pipeline, name, part)
    # diffusers' own conversion agrees on the one width that it knows.
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    with pytest.raises(
        UnsupportedCheckpoint, match=r"holds no vae, text_encoder, text_encoder_2; name a pipeline.*FLUX"
    ):
        as_pipeline(checkpoint(entries(tensors)))


def test_the_published_flux_has_its_number_of_parameters() -> None:
    model = flux_model(layers=(19, 38))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS["flux"]["transformer"]
    found = recognised(entries(original_files.flux(model)))
    assert found is not None
    assert (found.told["num_layers"], found.told["num_single_layers"], found.sizes["num_attention_heads"]) == (
        19,
        38,
        24,
    )


@pytest.mark.parametrize(
    ("guidance", "channels", "kind", "pipeline"),
    [
        (True, 64, "flux", "FluxPipeline"),
        (False, 64, "flux-schnell", "FluxPipeline"),
        (True, 384, "flux", "FluxFillPipeline"),
        (True, 128, "flux", "FluxControlPipeline"),
    ],
)
def test_variants_of_flux(guidance: bool, channels: int, kind: str, pipeline: str) -> None:
    found = recognised(entries(original_files.flux(flux_model(guidance=guidance, channels=channels, layers=(1, 1)))))
    assert found is not None
    assert (found.kind.name, found.pipeline) == (kind, pipeline)
    shift = {"flux": 3.0, "flux-schnell": 1.0}[kind]
    assert found.kind.scheduler["shift"] == shift and ("base_shift" in found.kind.scheduler) == guidance


def small_unet(channels: int = 4, **more: tuple[int, ...]) -> dict[str, TensorEntry]:
    """The tensors by which a UNet is known."""
    sizes = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
        **more,
    }
    return {name: TensorEntry(name, "F16", shape, Path("x"), 0, 2) for name, shape in sizes.items()}


def test_what_a_unet_reads_chooses_its_pipeline() -> None:
    assert as_pipeline(checkpoint(small_unet(9))).config["_class_name"] == "StableDiffusionInpaintPipeline"
    assert as_pipeline(checkpoint(small_unet(8))).config["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert is_known(small_unet(5))
    with pytest.raises(UnsupportedCheckpoint, match="Stable Diffusion 1 model that reads 5 channels cannot be run"):
        recognised(small_unet(5))


def test_what_a_file_was_trained_to_predict() -> None:
    def predicted(tensors: Mapping[str, TensorEntry], **metadata: str) -> Any:
        return as_pipeline(checkpoint(tensors, **metadata)).metadata["scheduler"].get("prediction_type")

    assert predicted(small_unet()) is None
    assert predicted(small_unet(), **{"modelspec.prediction_type": "v"}) == "v_prediction"
    assert predicted(small_unet(), **{"modelspec.prediction_type": "?"}) is None
    assert predicted(small_unet(v_pred=())) == "v_prediction"
    both = as_pipeline(checkpoint(small_unet(v_pred=(), ztsnr=()))).metadata["scheduler"]
    assert (both["rescale_betas_zero_snr"], both["timestep_spacing"]) == (True, "trailing")
    second = small_unet() | {
        "cond_stage_model.model.ln_final.weight": TensorEntry("a", "F16", (1024,), Path("x"), 0, 2),
    }
    assert predicted(second) == "v_prediction", "as most files of Stable Diffusion 2"
    assert predicted(second, **{"modelspec.prediction_type": "epsilon"}) == "epsilon"


def test_metadata_of_a_file_is_its_authors_word_alone() -> None:
    pipeline = as_pipeline(checkpoint(small_unet(), wants_code="x", components="y", original="z"))
    assert "wants_code" not in pipeline.metadata
    assert pipeline.metadata["original"] == ("unet", "vae", "text_encoder")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_sound(kind: str) -> None:
    import diffusers
    import transformers

    facts = load_kind(kind)
    assert facts.denoiser in facts.parts and facts.variants
    for variant in facts.variants.values():
        taken = getattr(diffusers, variant["pipeline"])._get_signature_types()
        assert facts.parts.keys() | facts.tokenizers.keys() <= taken.keys() and variant["base"].count("/") == 1
    for part in facts.parts.values():
        assert isinstance(
            getattr({"diffusers": diffusers, "transformers": transformers}[part.kind[0]], part.kind[1]), type
        )
    assert issubclass(getattr(diffusers, facts.scheduler["_class_name"]), diffusers.SchedulerMixin)


NAMES = [
    *small_unet(), "joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight", "context_embedder.weight",
    "pos_embed", "y_embedder.mlp.0.weight", "double_blocks.0.img_attn.qkv.weight", "img_in.weight", "txt_in.weight",
    "vector_in.in_layer.weight", "final_layer.linear.weight", "conditioner.embedders.1.model.x", "vae.x", "",
    "double_blocks.99999999999999999999.x", "model.diffusion_model.", "text_encoders.t5xxl.transformer.x",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(0, 4096), max_size=5)))
def test_any_header_is_known_or_not(given_shapes: dict[str, list[int]]) -> None:
    tensors = {n: TensorEntry(n, "F16", tuple(shape), Path("x"), 0, 2) for n, shape in given_shapes.items()}
    if not is_known(tensors):
        assert recognised(tensors) is None
        return
    try:
        pipeline = as_pipeline(checkpoint(tensors))
    except UnsupportedCheckpoint:
        return
    assert pipeline.layout == "diffusers" and {name.partition("/")[2] for name in pipeline.tensors} <= tensors.keys()


def test_tensors_in_no_layout_are_told() -> None:
    model = model_of("diffusers", "UNet2DConditionModel", load_kind("sd1").parts["unet"].config)
    stray = {"model.diffusion_model.input_blocks.7.1.x": Shape("x", (1,))}
    assert for_diffusers(model, stray, "x") is not None, "what is missing is found when names are compared"
    transformer = flux_model(layers=(1, 1))
    broken = {name: Shape(name, tuple(t.shape)) for name, t in original_files.flux(transformer).items()}
    broken["single_blocks.0.linear1.weight"] = replace(broken["single_blocks.0.linear1.weight"], shape=(7, 7))
    with pytest.raises(UnsupportedCheckpoint, match="the file: its tensors are not in a layout that is known"):
        for_diffusers(transformer, broken, "the file")
