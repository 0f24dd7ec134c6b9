"""Networks that restore or enlarge pictures, by names of their tensors. No torch; spandrel builds and runs them."""

from __future__ import annotations

from collections.abc import Mapping

from kamado.checkpoint.types import Checkpoint, TensorEntry

from .restore_ncnn import published_names

Tensors = Mapping[str, TensorEntry]

_PREFIXES = ("params_ema.", "params-ema.", "params.", "state_dict.", "model_state_dict.", "module.", "netG.")
"""What training code puts before all names; of a file with several, the first of these counts."""
_BLOCK = "layers.0.residual_group.blocks.0."
_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # architecture: names that are there together, in one or several variants; special ones before general ones
    "HAT": (("relative_position_index_SA", f"{_BLOCK}conv_block.cab.0.weight", "conv_last.weight"),),
    "GRL": tuple(
        (f"{start}norm_start.weight", f"{start}layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale")
        for start in ("", "model.", "model_g.")
    ),
    "Swin2SR": (("patch_embed.proj.weight", "conv_first.weight", f"{_BLOCK}attn.logit_scale"),),
    "SwinIR": tuple(
        (f"{_BLOCK}norm1.weight", f"{_BLOCK}attn.relative_position_index", first)
        for first in ("conv_first.weight", "conv_first.1.weight")
    ),
    "GFPGAN": (("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"),),
    "RestoreFormer": (("quantize.embedding.weight", "quant_conv.weight", "decoder.mid.attn_1.norm1.weight"),),
    "LaMa": (("model.model.1.bn_l.running_mean",), ("generator.model.1.bn_l.running_mean",)),
    "OmniSR": (("residual_layer.0.residual_layer.0.layer.0.fn.0.weight", "input.weight", "up.0.weight"),),
    "SCUNet": (("m_head.0.weight", "m_tail.0.weight"),),
    "FBCNN": (("m_head.weight", "m_body_encoder.0.res.0.weight", "qf_pred.0.res.0.weight"),),
    "DRUNet": (("m_head.weight", "m_down1.0.res.0.weight", "m_body.0.res.0.weight", "m_tail.weight"),),
    "Uformer": (("input_proj.proj.0.weight", "output_proj.proj.0.weight", "encoderlayer_0.blocks.0.norm1.weight"),),
    "RGT": (("before_RG.1.weight", "layers.0.blocks.0.gamma", "layers.0.blocks.0.attn.attns.0.rpe_biases"),),
    "DAT": (("before_RG.1.weight", "layers.0.blocks.0.ffn.sg.norm.weight", "layers.0.blocks.0.attn.dwconv.0.weight"),),
    "CRAFT": (("conv_first.weight", "layers.0.residual_group.hf_blocks.0.attn.temperature"),),
    "KBNet": (
        ("intro.weight", "encoders.0.0.attgamma", "middle_blks.0.w"),
        ("patch_embed.proj.weight", "latent.0.ffn.qkv.weight", "refinement.0.attn.dwconv.0.weight"),
    ),
    "DITN": (("sft.weight", "UFONE.0.ITLs.0.attn.temperature"),),
    "MMRealSR": (("conv_first.weight", "body.0.rdb1.conv1.weight", "de_net.conv_first.0.weight"),),
    "SPAN": (("conv_1.sk.weight", "block_1.c1_r.eval_conv.weight", "conv_cat.weight"),),
    "RealCUGAN": (("unet1.conv1.conv.0.weight", "unet1.conv1_down.weight", "unet2.conv_bottom.weight"),),
    "SAFMN": (("to_feat.weight", "feats.0.safm.mfr.0.weight", "to_img.0.weight"),),
    "SAFMNBCIE": (("to_feat.1.weight", "feats.0.layers.0.safm.mfr.0.weight", "to_img.2.weight"),),
    "DCTLSA": (("fea_conv.weight", "B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight", "LR_conv.weight"),),
    "FFTformer": (("patch_embed.proj.weight", "encoder_level1.0.ffn.fft", "fuse1.att_channel.ffn.fft"),),
    "NAFNet": (("intro.weight", "ending.weight", "middle_blks.0.beta", "middle_blks.0.sca.1.weight"),),
    "ATD": (("relative_position_index_SA", "layers.0.residual_group.layers.0.attn_atd.scale"),),
    "MixDehazeNet": (("patch_embed.proj.weight", "layer1.blocks.0.conv3_19.weight", "skip1.weight"),),
    "DRCT": (("conv_first.weight", "layers.0.swin1.attn.qkv.weight", "layers.0.adjust5.weight"),),
    "IPT": (("sub_mean.weight", "head.0.0.weight", "body.encoder.layers.0.self_attn.in_proj_weight"),),
    "ESRGAN": (
        ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
        ("model.0.weight", "model.1.sub.0.RDB1.conv1x1.weight"),
        ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight"),
        ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", "trunk_conv.weight"),
    ),
    "PLKSR": tuple(
        ("feats.0.weight", "feats.1.refine.weight", f"feats.1.lk.{conv}.weight")
        for conv in ("conv", "convs.0", "mn_conv")
    ),
    "RetinexFormer": (("body.0.estimator.conv1.weight", "body.0.denoiser.embedding.weight"),),
    "HVICIDNet": (("HVE_block0.1.weight", "HV_LCA1.gdfn.project_in.weight", "trans.density_k"),),
    "SeemoRe": (("conv_1.weight", "body.0.local_block.block.moe_layer.experts.0.conv_1.weight"),),
    "MoSR": (("gblocks.0.weight", "gblocks.1.norm.weight", "gblocks.1.fc2.weight"),),
    "MoESR": (("in_to_dim.weight", "blocks.0.blocks.0.gamma", "upscale.MetaUpsample"),),
    "RCAN": tuple(
        (first, "tail.1.weight", "body.0.body.0.body.3.conv_du.0.weight")
        for first in ("head.0.weight", "head.1.weight")
    ),
    "FDAT": (("groups.0.blocks.0.attn.bias", "groups.0.blocks.0.inter.cg.1.weight", "upsampler.MetaUpsample"),),
    "AuraSR": (("mid_attn.layers.0.0.to_out.weight", "final_res_block.block1.proj.weights"),),
    "SwiftSRGAN": (("initial.cnn.depthwise.weight", "final_conv.pointwise.weight"),),
}
_COMPACT = ("body.0.weight", "body.1.weight", "body.2.weight")
_DNCNN = ("model.0.weight", "model.0.bias", "model.2.weight")
ARCHITECTURES = (*_NAMES, "Compact (SRVGG)", "DnCNN")
"""All that are known here."""
_SWIN = "weight_predictor.blocks.0.swin_blks.0.residual_group.blocks.0.norm1.weight"
_CLOSED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # as _NAMES: architectures whose published code is not free
    "CodeFormer": (("position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight"),),
    "MAT": tuple((f"{start}synthesis.first_stage.conv_first.conv.resample_filter",) for start in ("", "model.")),
    "SRFormer": ((f"{_BLOCK}norm1.weight", f"{_BLOCK}attn.aligned_relative_position_index", "conv_first.weight"),),
    "Restormer": (("patch_embed.proj.weight", "encoder_level1.0.attn.qkv_dwconv.weight", "down1_2.body.0.weight"),),
    "AdaCode": (("multiscale_encoder.in_conv.weight", "before_quant_group.0.weight", _SWIN),),
    "FeMaSR": (("multiscale_encoder.in_conv.weight", "before_quant_group.0.weight", "out_conv.weight"),),
    "MPRNet": (("shallow_feat1.0.weight", "sam12.conv1.weight", "stage3_orsnet.orb1.body.0.body.0.weight"),),
    "DDColor": (("refine_net.0.0.weight_orig", "encoder.arch.downsample_layers.0.0.weight"),),
}


def plain_names(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """The tensors by the names of the published network, without what training code put before them. Raises
    UnsupportedCheckpoint for a network of ncnn's that is not known."""
    if checkpoint.layout == "ncnn":
        return published_names(checkpoint)
    found = dict(checkpoint.tensors)
    for _ in range(3):
        prefix = next((each for each in _PREFIXES if any(name.startswith(each) for name in found)), None)
        if prefix is None:
            break
        found = {name[len(prefix) :]: entry for name, entry in found.items() if name.startswith(prefix)}
    return found


def architecture(checkpoint: Checkpoint) -> str | None:
    """The name of the architecture; None: none that is known."""
    if checkpoint.layout not in ("safetensors", "ncnn"):
        return None
    tensors = plain_names(checkpoint)
    found = _named(tensors, _NAMES)
    if found is not None:
        return found
    if all(name in tensors for name in _COMPACT) and _is_chain(tensors, "body."):
        return "Compact (SRVGG)"
    if all(name in tensors for name in _DNCNN) and _is_chain(tensors, "model."):
        return "DnCNN"
    return None


def closed(checkpoint: Checkpoint) -> str | None:
    """The name of an architecture that is known, and not run: its published code is not free."""
    return _named(plain_names(checkpoint), _CLOSED) if checkpoint.layout == "safetensors" else None


def _named(tensors: Tensors, architectures: Mapping[str, tuple[tuple[str, ...], ...]]) -> str | None:
    for name, variants in architectures.items():
        if any(all(each in tensors for each in variant) for variant in variants):
            return name
    return None


def _is_chain(tensors: Tensors, prefix: str) -> bool:
    """Whether all are numbered layers, the first and the last of which are convolutions."""
    numbers = set()
    for name in tensors:
        start, _, rest = name.partition(prefix)
        number = rest.partition(".")[0]
        if start or not number.isdecimal() or rest.count(".") != 1:
            return False
        numbers.add(int(number))
    ends = [tensors.get(f"{prefix}{number}.weight") for number in (min(numbers), max(numbers))]
    return all(end is not None and len(end.shape) == 4 for end in ends)
