"""Networks that restore pictures, in spandrel's own classes, as small as they get, and spandrel's own call."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from kamado_models.adversarial.restore_spandrel import spandrel

library = spandrel()
gfpgan: Any = importlib.import_module("spandrel.architectures.GFPGAN")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    # a name for the test: spandrel's architecture and class, settings
    "ATD": ("ATD.ATD", {"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4,
                        "category_size": 16, "num_tokens": 4, "reducted_dim": 2, "upscale": 2,
                        "upsampler": "pixelshuffledirect"}),
    "AuraSR": ("AuraSR.AuraSR", {"dim": 8, "image_size": None, "input_image_size": None, "skip_connect_scale": 0.4,
                                 "style_network": {"dim_in": 4, "dim_out": 16, "depth": 2},
                                 "up_dim_mults": (1, 1, 1, 1, 1), "down_dim_mults": (1, 1, 1),
                                 "self_attn_dim_head": 1, "attn_depths": (2, 2, 2, 1, 1), "mid_attn_depth": 1,
                                 "num_conv_kernels": 2}),
    "CRAFT": ("CRAFT.CRAFT", {"embed_dim": 48, "window_size": 8, "depths": [1], "num_heads": [6],
                              "split_size_0": 4, "split_size_1": 8, "upscale": 2}),
    "Compact": ("Compact.Compact", {"num_feat": 4, "num_conv": 2, "upscale": 2}),
    "DAT": ("DAT.DAT", {"embed_dim": 32, "split_size": [2, 4], "depth": [2], "num_heads": [2],
                        "expansion_factor": 2.0, "upscale": 2, "upsampler": "pixelshuffledirect"}),
    "DCTLSA": ("DCTLSA.DCTLSA", {"nf": 10, "num_modules": 6, "upscale": 2, "num_head": 5}),
    "DITN": ("DITN.DITN", {"dim": 4, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "DRCT": ("DRCT.DRCT", {"img_size": 16, "embed_dim": 8, "depths": (6,), "num_heads": (2,), "window_size": 4,
                           "upscale": 2, "upsampler": "pixelshuffle", "gc": 4}),
    "DRUNet": ("DRUNet.DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [4, 4, 4, 4], "nb": 2}),
    "DnCNN, batch norms": ("DnCNN.DnCNN", {"nc": 4, "nb": 5}),
    "DnCNN, noise level": ("DnCNN.DnCNN", {"in_nc": 4, "out_nc": 3, "nc": 4, "nb": 8, "act_mode": "R",
                                           "mode": "FDnCNN"}),
    "DnCNN": ("DnCNN.DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 4, "nb": 8, "act_mode": "R"}),
    "ESRGAN": ("ESRGAN.ESRGAN", {"num_filters": 4, "num_blocks": 1}),
    "ESRGAN, unshuffled": ("ESRGAN.ESRGAN", {"in_nc": 3, "num_filters": 4, "num_blocks": 1, "scale": 2,
                                             "shuffle_factor": 2}),
    "ESRGAN, grey": ("ESRGAN.ESRGAN", {"in_nc": 1, "out_nc": 1, "num_filters": 4, "num_blocks": 1, "scale": 2}),
    "FBCNN": ("FBCNN.FBCNN", {"nc": [4, 4, 4, 512], "nb": 2}),
    "FDAT": ("FDAT.FDAT", {"scale": 2, "embed_dim": 8, "num_groups": 1, "depth_per_group": 2, "num_heads": 2,
                           "mid_dim": 4}),
    "FFTformer": ("FFTformer.FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    "GRL": ("GRL.GRL", {"img_size": 16, "embed_dim": 16, "upscale": 2, "upsampler": "pixelshuffledirect",
                        "depths": [1], "num_heads_window": [2], "num_heads_stripe": [2]}),
    "HAT": ("HAT.HAT", {"img_size": 16, "embed_dim": 12, "depths": (1,), "num_heads": (2,), "window_size": 4,
                        "squeeze_factor": 3, "upscale": 2, "num_feat": 4}),
    "HVICIDNet": ("HVICIDNet.HVICIDNet", {"channels": [4, 4, 8, 16], "heads": [1, 2, 4, 8]}),
    "IPT": ("IPT.IPT", {"patch_size": 12, "n_feats": 4, "num_layers": 1, "num_heads": 12, "scale": [2]}),
    "KBNet": ("KBNet.KBNet_s", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "KBNet, large": ("KBNet.KBNet_l", {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}),
    "MMRealSR": ("MMRealSR.MMRealSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1,
                                       "num_grow_ch": 4, "num_feats": [8, 8, 8], "num_blocks": [1, 1, 1],
                                       "downscales": [2, 2, 2]}),
    "MixDehazeNet": ("MixDehazeNet.MixDehazeNet", {"embed_dims": [8, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1]}),
    "MoESR": ("MoESR.MoESR", {"scale": 2, "dim": 8, "n_blocks": 1, "n_block": 1}),
    "MoSR": ("MoSR.MoSR", {"upscale": 2, "n_block": 1, "dim": 8}),
    "NAFNet": ("NAFNet.NAFNet", {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR.OmniSR", {"num_feat": 16, "up_scale": 2}),
    "PLKSR": ("PLKSR.PLKSR", {"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "PLKSR, real": ("PLKSR.RealPLKSR", {"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "RCAN": ("RCAN.RCAN", {"scale": 2, "n_resgroups": 1, "n_resblocks": 1, "n_feats": 16}),
    "RGT": ("RGT.RGT", {"img_size": 16, "embed_dim": 32, "depth": [2], "num_heads": [2], "mlp_ratio": 2.0,
                        "upscale": 2}),
    "RealCUGAN": ("RealCUGAN.UpCunet2x_fast", {}),
    "RealCUGAN, pro": ("RealCUGAN.UpCunet3x", {"pro": True}),
    "RealCUGAN, 4 times": ("RealCUGAN.UpCunet4x", {}),
    "RestoreFormer": ("RestoreFormer.RestoreFormer", {"n_embed": 16, "embed_dim": 16, "ch": 32, "num_res_blocks": 1,
                                                      "ch_mult": (1, 1, 1, 1, 1), "z_channels": 32}),
    "RetinexFormer": ("RetinexFormer.RetinexFormer", {"n_feat": 8, "stage": 1, "num_blocks": [1, 1, 1]}),
    "SAFMN": ("SAFMN.SAFMN", {"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "SAFMNBCIE": ("SAFMNBCIE.SAFMNBCIE", {"dim": 8, "n_blocks": 1, "num_layers": 1}),
    "SCUNet": ("SCUNet.SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}),
    "SPAN": ("SPAN.SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, "norm": False}),
    "SeemoRe": ("SeemoRe.SeemoRe", {"scale": 2, "num_experts": 2, "num_layers": 1, "embedding_dim": 8}),
    "SwiftSRGAN": ("SwiftSRGAN.SwiftSRGAN", {"num_channels": 8, "num_blocks": 1, "upscale_factor": 2}),
    "Swin2SR": ("Swin2SR.Swin2SR", {"img_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2],
                                    "window_size": 8, "upsampler": "pixelshuffledirect"}),
    "SwinIR, convolutions": ("SwinIR.SwinIR", {"img_size": 8, "embed_dim": 8, "depths": [1], "num_heads": [2],
                                               "window_size": 4, "upscale": 4, "upsampler": "nearest+conv"}),
    "SwinIR": ("SwinIR.SwinIR", {"img_size": 8, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4,
                                 "upscale": 2, "mlp_ratio": 2, "upsampler": "pixelshuffledirect"}),
    "Uformer": ("Uformer.Uformer", {"img_size": 128, "embed_dim": 4, "depths": [1] * 9}),
}  # fmt: skip

_GAINS = {"DCTLSA": 0.7, "DITN": 0.7, "DnCNN, noise level": 2.0, "FFTformer": 0.5, "SCUNet": 0.7}
"""How large the weights are, where a picture would leave [0, 1] otherwise."""


def shaken(module: nn.Module, gain: float = 1.0) -> dict[str, Tensor]:
    """Its tensors, with random weights that neither fade nor explode."""
    generator = torch.Generator().manual_seed(0)
    weights = {name for name, weight in module.named_parameters() if weight.ndim > 1}
    state = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) if name in weights else tensor
        state[name] = noise * gain / max(tensor[0].numel(), 1) ** 0.5 if name in weights else tensor.clone()
    return state


def restorer(name: str) -> dict[str, Tensor]:
    """The tensors of a network of SETTINGS."""
    (module, _, kind), settings = SETTINGS[name][0].partition("."), SETTINGS[name][1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**settings)
    return shaken(made, _GAINS.get(name, 1.0))


def photo(width: int, height: int, mode: str = "RGB", seed: int = 3) -> Image.Image:
    """Soft spots of colour."""
    coarse = numpy.random.default_rng(seed).integers(0, 256, (6, 6, len(mode)), dtype=numpy.uint8)
    return Image.fromarray(coarse[..., 0] if mode == "L" else coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> Tensor:
    """As spandrel takes it: (1, channels, height, width) in [0, 1]."""
    array = numpy.array(image)
    deep = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(deep).float().permute(2, 0, 1)[None] / 255


def as_array(made: Tensor) -> Any:
    """(height, width, channels)"""
    return made[0].permute(1, 2, 0).numpy()


def oracle(state: Mapping[str, Tensor], image: Image.Image, mask: Tensor | None = None) -> Any:
    """What spandrel's own call makes of the picture."""
    found = library.MAIN_REGISTRY.load(dict(state)).eval()
    with torch.no_grad():
        return as_array(found(as_tensor(image)) if mask is None else found(as_tensor(image), mask))


def face_restorer(**settings: Any) -> dict[str, Tensor]:
    """GFPGAN in its published layout, with noise that shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = shaken(gfpgan.GFPGAN(**settings), gain=0.7)
    for name, tensor in state.items():
        if tensor.shape == (1,):
            state[name] = torch.full((1,), 0.3)
    return state


def authors_call(state: dict[str, Tensor], image: Image.Image, seed: int) -> Any:
    """What the script of GFPGAN's authors does with spandrel's network: pictures are in [-1, 1]."""
    network = library.MAIN_REGISTRY.load(dict(state)).eval().model
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return as_array(((network((as_tensor(image) - 0.5) / 0.5)[0] + 1) / 2).clamp(0, 1))
