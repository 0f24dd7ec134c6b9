"""Shap-E and Marigold, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .layout import tidy
from .parts import LATENT_BETAS, clip_pictures, clip_text, clip_tokenizer, picture_vae
from .unets import unet

CLASSES = (
    *("ShapEPipeline", "ShapEImg2ImgPipeline"),
    *("MarigoldDepthPipeline", "MarigoldNormalsPipeline", "MarigoldIntrinsicsPipeline"),
)
"""What of it is compared with diffusers."""
_WIDE = 8


def shap_e(folder: Path, *, image: bool = False) -> Path:
    """Write a Shap-E that makes smooth bodies of a text, or of a picture."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEImg2ImgPipeline, ShapEPipeline
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = PriorTransformer(
            num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_embeddings=4 * _WIDE,
            embedding_proj_dim=32, time_embed_dim=128, num_layers=1, clip_embed_dim=64, additional_embeddings=0,
            time_embed_act_fn="gelu", norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
            **({"embedding_proj_norm_type": "layer"} if image else {}),
        )  # fmt: skip
        renderer = ShapERenderer(
            param_shapes=((_WIDE, 93), *((_WIDE, _WIDE),) * 3), d_latent=32, d_hidden=_WIDE, n_output=12
        )
        _smooth(renderer)
        scheduler = HeunDiscreteScheduler(
            beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True,
            clip_sample=True, clip_sample_range=1.0,
        )  # fmt: skip
        parts: dict[str, Any] = {"prior": prior, "scheduler": scheduler, "shap_e_renderer": renderer}
        if image:
            pipeline: Any = ShapEImg2ImgPipeline(**parts, image_encoder=_vision(), image_processor=clip_pictures())
        else:
            pipeline = ShapEPipeline(**parts, text_encoder=clip_text(projection=32), tokenizer=clip_tokenizer())
    pipeline.save_pretrained(folder)
    tidy(folder)
    return folder


def marigold(name: str, folder: Path) -> Path:
    """Write a Marigold: "Depth", "Normals" or "Intrinsics"."""
    import diffusers

    kind: Any = getattr(diffusers, f"Marigold{name}Pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        targets = 2 if name == "Intrinsics" else 1
        scheduler = diffusers.DDIMScheduler(
            **LATENT_BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        extra: dict[str, Any] = {
            "Depth": {"prediction_type": "depth", "scale_invariant": True, "shift_invariant": True},
            "Normals": {"prediction_type": "normals"},
            "Intrinsics": {
                "prediction_type": "intrinsics",
                "target_properties": {"target_names": ["albedo", "material"], "albedo": {}, "material": {}},
            },
        }[name]
        pipeline = kind(
            unet=unet(in_channels=4 + 4 * targets, out_channels=4 * targets),
            vae=picture_vae(),
            scheduler=scheduler,
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(),
            default_denoising_steps=2,
            default_processing_resolution=64,
            **extra,
        )
    pipeline.save_pretrained(folder)
    tidy(folder)
    return folder


def _vision() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32, image_size=28, patch_size=14, num_attention_heads=4, num_hidden_layers=1, intermediate_size=37
    )
    return CLIPVisionModel(config)


def _smooth(renderer: Any) -> None:
    """Let it know places by their coarse coordinates only, put a ball into the middle, and fill in the table of
    marching cubes, which published checkpoints carry."""
    cases, masks = _marching_cubes()
    with torch.no_grad():
        next(iter(renderer.params_proj.projections.values())).norm.weight[3:] = 0
        renderer.mlp.mlp[-1].weight[0] *= 4
        renderer.mlp.mlp[-1].bias[0] = 0
        renderer.mesh_decoder.cases.copy_(cases)
        renderer.mesh_decoder.masks.copy_(masks)


def _marching_cubes() -> tuple[torch.Tensor, torch.Tensor]:
    """Up to five triangles, of edges' numbers, for each of the 256 ways in which a cube's corners can be inside: the
    contours on its faces, joined. What takes more than five is cut short."""
    edges = [(a, b) for bit in (1, 2, 4) for a, b in sorted((c, c | bit) for c in range(8) if not c & bit)]
    number = {frozenset(edge): place for place, edge in enumerate(edges)}
    faces = []
    for bit, (u, v) in {1: (2, 4), 2: (4, 1), 4: (1, 2)}.items():
        faces += [[bit, bit | u, bit | u | v, bit | v], [0, v, u | v, u]]  # counter-clockwise from outside
    cases, masks = torch.zeros(256, 5, 3, dtype=torch.long), torch.zeros(256, 5, dtype=torch.bool)
    for case in range(256):
        follows = {}
        for face in faces:
            inside = [bool(case >> corner & 1) for corner in face]
            crossed = [
                (number[frozenset((face[i], face[(i + 1) % 4]))], inside[i])
                for i in range(4)
                if inside[i] != inside[(i + 1) % 4]
            ]
            for place, (edge, leaves) in enumerate(crossed):
                if leaves:  # from inside to outside: joined with the edge before, where the inside began
                    follows[edge] = crossed[place - 1][0]
        triangles = []
        while follows:
            start, edge = follows.popitem()
            loop = [start]
            while edge != start:
                loop.append(edge)
                edge = follows.pop(edge)
            triangles += [(loop[0], loop[i + 1], loop[i]) for i in range(1, len(loop) - 1)]
        for place, triangle in enumerate(triangles[:5]):
            cases[case, place] = torch.tensor(triangle)
            masks[case, place] = True
    return cases, masks
