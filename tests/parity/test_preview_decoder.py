"""A tiny decoder for previews, given as a component beside the pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado.events import Preview


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(5)
        made: Any = AutoencoderTiny(decoder_block_out_channels=(8,) * 4, encoder_block_out_channels=(8,) * 4)
    folder = tmp_path / "tiny-decoder"
    made.save_pretrained(folder)
    return folder


def test_it_makes_the_previews_and_leaves_the_picture_alone(
    decoder: Path, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    from diffusers import AutoencoderTiny

    request: dict[str, Any] = {**tiny.arguments("sd15"), "num_inference_steps": 2, "seed": 3}
    plain = runtime.load(folders["sd15"]).generate(**request)
    model = runtime.load(folders["sd15"], components={"preview_vae": str(decoder)})
    events = list(model.stream(**request, preview_every=2))
    (shown,) = [event.image for event in events if isinstance(event, Preview)]
    generator = torch.Generator().manual_seed(3)
    asked = {name: value for name, value in request.items() if name != "seed"}
    latents = tiny.load(folders["sd15"])(**asked, output_type="latent", generator=generator).images
    kind: Any = AutoencoderTiny
    wanted = (kind.from_pretrained(decoder).decode(latents).sample[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1).detach()
    assert numpy.abs(numpy.asarray(shown, dtype=numpy.float32) / 255 - wanted.numpy()).max() < 0.01
    result = model.generate(**request)
    assert numpy.array_equal(result.pixels[0], plain.pixels[0])
    assert "preview_vae" in result.recipe["components"]


def test_no_other_class_is_taken_for_it(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    with pytest.raises(kamado.UnsupportedCheckpoint, match="preview_vae must be a AutoencoderTiny"):
        runtime.load(folders["sd15"], components={"preview_vae": f"{folders['sd15']}#vae"})
