"""Stand-ins for models of transformers and diffusers, under those libraries' own code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from .toys import Hearth, end_of


@pytest.fixture(scope="module")
def language_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def test_generate_of_transformers_makes_a_forward_a_token(language_model: Any) -> None:
    """Two requests in turns, each with a cache of its own."""
    prompts = {"a": torch.tensor([[1, 2, 3]]), "b": torch.tensor([[9, 8, 7, 6]]), "c": torch.tensor([[1, 2, 3]])}
    wanted = {
        name: language_model.generate(ids, max_new_tokens=5, do_sample=False).tolist() for name, ids in prompts.items()
    }
    assert len({str(tokens) for tokens in wanted.values()}) == 2
    hearth = Hearth({"model": language_model})

    def body(ids: torch.Tensor) -> Callable[[Any, Any], Any]:
        return lambda script, models: models.model.generate(ids, max_new_tokens=5, do_sample=False)

    for name, ids in prompts.items():
        hearth.add(name, body(ids))
    events = hearth.run()
    for name in prompts:
        end = end_of(events, name)
        assert end.error is None
        assert end.output.tolist() == wanted[name]
    assert hearth.loop.forwards.rows_by_lane["model"] == 3 * 5


def test_a_language_models_stand_in_answers_what_transformers_asks(language_model: Any) -> None:
    hearth = Hearth({"model": language_model})
    found: dict[str, Any] = {}

    def body(script: Any, models: Any) -> None:
        view = models.model
        found["type"] = type(view) is type(language_model)
        found["config"] = view.config is language_model.config
        found["generation config"] = view.generation_config is language_model.generation_config
        found["dtype"] = view.dtype == torch.float32
        found["device"] = view.device == torch.device("cpu")
        found["parts"] = view.get_input_embeddings().weight is language_model.get_input_embeddings().weight
        found["signature"] = inspect.signature(view.forward) == inspect.signature(language_model.forward)
        found["base"] = type(view.base_model) is type(language_model.base_model)

    hearth.add("a", body)
    assert end_of(hearth.run(), "a").error is None
    assert found
    assert all(found.values()), found


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8, latent_channels=2).eval()


def test_the_autoencoder_of_diffusers_encodes_and_decodes_for_several_at_once() -> None:
    autoencoder = _autoencoder()
    pictures = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def body(picture: torch.Tensor, seed: int) -> Callable[[Any, Any], Any]:
        return lambda script, models: through(models.autoencoder, picture, seed)

    def through(model: Any, picture: torch.Tensor, seed: int) -> torch.Tensor:
        latents = model.encode(picture).latent_dist.sample(torch.Generator().manual_seed(seed))
        found: torch.Tensor = model.decode(latents / model.config.scaling_factor, return_dict=False)[0]
        return found

    hearth = Hearth({"autoencoder": autoencoder}, trusted=True)
    with torch.no_grad():
        for seed, picture in enumerate(pictures):
            hearth.add(str(seed), body(picture, seed))
        events = hearth.run()
        for seed, picture in enumerate(pictures):
            assert torch.allclose(end_of(events, str(seed)).output, through(autoencoder, picture, seed), atol=1e-5)
    assert hearth.loop.forwards.steps_by_lane["autoencoder"] == 2


def test_tiling_is_one_requests_own() -> None:
    autoencoder = _autoencoder()
    autoencoder.tile_latent_min_size = 4
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))

    def tiled(script: Any, models: Any) -> Any:
        models.autoencoder.enable_tiling()
        return models.autoencoder.decode(latents).sample

    hearth = Hearth({"autoencoder": autoencoder}, trusted=True)
    with torch.no_grad():
        hearth.add("tiled", tiled)
        hearth.add("tiled too", tiled)
        hearth.add("plain", lambda script, models: models.autoencoder.decode(latents).sample)
        events = hearth.run()
        assert not autoencoder.use_tiling
        plain = autoencoder.decode(latents).sample
        autoencoder.enable_tiling()
        in_tiles = autoencoder.decode(latents).sample
    assert in_tiles.shape != plain.shape, "tiles of this size leave a mark"
    for name, wanted in (("plain", plain), ("tiled", in_tiles), ("tiled too", in_tiles)):
        assert torch.allclose(end_of(events, name).output, wanted, atol=1e-5)
    assert hearth.loop.forwards.steps_by_lane["autoencoder"] == 2


def test_attention_processors_are_one_requests_own() -> None:
    """As pipelines set them that perturb attention."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    class Doubling(AttnProcessor):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2

    torch.manual_seed(6)
    unet: Any = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=2,
        sample_size=4,
    ).eval()
    sample, text = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 4)
    before = unet.attn_processors

    def steps(model: Any) -> Any:
        return [model(sample, step, text).sample for step in range(2)]

    def perturbed(script: Any, models: Any) -> Any:
        original = models.unet.attn_processors
        models.unet.set_attn_processor({name: Doubling() for name in original})
        found = steps(models.unet)
        models.unet.set_attn_processor(original)
        assert models.unet.dtype == torch.float32
        return [*found, *steps(models.unet)]

    hearth = Hearth({"unet": unet}, trusted=True)
    with torch.no_grad():
        hearth.add("perturbed", perturbed)
        hearth.add("plain", lambda script, models: steps(models.unet))
        events = hearth.run()
        plain = steps(unet)
        assert unet.attn_processors == before
        unet.set_attn_processor({name: Doubling() for name in before})
        doubled = steps(unet)
    assert not torch.allclose(doubled[0], plain[0], atol=1e-3)
    for name, wanted in (("plain", plain), ("perturbed", [*doubled, *plain])):
        found = end_of(events, name).output
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))


def test_asking_for_dtype_and_device_makes_no_views_of_all_parts() -> None:
    """Pipelines ask for them with every step."""
    from kamado.tasks.library.standin import stand_in

    autoencoder = _autoencoder()
    view = stand_in(autoencoder, lambda call: call.run())
    assert (view.dtype, view.device) == (torch.float32, torch.device("cpu"))
    views = inspect.getclosurevars(view.forward).nonlocals["views"]()
    assert len(views._views) < len([*autoencoder.modules()]) / 2


def test_a_cache_in_a_result_is_taken_apart(language_model: Any) -> None:
    """Texts that were read together are gone on with alone."""
    prompts = [torch.tensor([[1, 2, 3]]), torch.tensor([[9, 8, 7]])]

    def read_on(model: Any, ids: torch.Tensor) -> torch.Tensor:
        read = model(ids, use_cache=True)
        more = model(torch.tensor([[4]]), past_key_values=read.past_key_values, use_cache=True)
        logits: torch.Tensor = more.logits
        return logits

    hearth = Hearth({"model": language_model})
    with torch.no_grad():
        for repeat in range(2):
            for number, ids in enumerate(prompts):
                hearth.add(str(number), lambda script, models, ids=ids: read_on(models.model, ids))
            events = hearth.run()
            for number, ids in enumerate(prompts):
                assert torch.allclose(end_of(events, str(number)).output, read_on(language_model, ids), atol=1e-5)
            assert hearth.loop.forwards.rows_by_lane["model"] == 4 * (repeat + 1)
    assert list(hearth.lanes["model"].joins.values()) == [True]
    assert hearth.loop.forwards.steps_by_lane["model"] == 2 * 3
