"""Tiny random checkpoints of models that look at pictures, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_pipelines.spec import picture

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": 32,
}
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
_SIZE = {"height": 32, "width": 32}
NAMES = ("background", "cat", "dog", "sofa")


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint of `name`, which is in DEPTH, SEGMENTS or POSES."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model, processor = {**DEPTH, **SEGMENTS, **POSES}[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.5 if name == "maskformer" else 0.15)
        if name in ("mobilenet_v2", "mobilevit"):
            _balance(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _balance(model: Any, processor: Any) -> None:
    """Let norms know their inputs, and give each label its turn: else all of a picture is one label."""
    image = picture(64).convert("RGB").resize((60, 40))
    seen = processor(images=[image, image.rotate(180)], return_tensors="pt")
    head = model.segmentation_head.classifier.convolution
    with torch.no_grad():
        for each in model.modules():
            if isinstance(each, torch.nn.BatchNorm2d):
                each.momentum = 1.0
        model.train()(**seen)
        logits = model.eval()(**seen).logits
        spread = logits.std((0, 2, 3))
        head.weight.div_(spread[:, None, None, None])
        head.bias.copy_((head.bias - logits.mean((0, 2, 3))) / spread)


def _dpt() -> Any:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(**_VIT, **_NECK, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False)
    return DPTForDepthEstimation(config), DPTImageProcessor(size=_SIZE)


def _depth_anything(metric: bool = False) -> Any:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32,
        out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=8, neck_hidden_sizes=[8, 8],
        reassemble_factors=[2, 1], fusion_hidden_size=8, head_hidden_size=8,
        **({"depth_estimation_type": "metric", "max_depth": 20} if metric else {}),
    )  # fmt: skip
    processor = DPTImageProcessor(size=_SIZE, keep_aspect_ratio=True, ensure_multiple_of=8)
    return DepthAnythingForDepthEstimation(config), processor


def _glpn() -> Any:
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return GLPNForDepthEstimation(config), GLPNImageProcessor()


def _named() -> dict[str, Any]:
    return {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}


def _segformer() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8,
        **_named(),
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config), SegformerImageProcessor(size=_SIZE)


def _dpt_segments() -> Any:
    from transformers import DPTConfig, DPTForSemanticSegmentation, DPTImageProcessor

    config = DPTConfig(**_VIT, **_NECK, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, **_named())
    return DPTForSemanticSegmentation(config), DPTImageProcessor(size=_SIZE)


def _mobilevit() -> Any:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation, MobileViTImageProcessor

    config = MobileViTConfig(
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], image_size=128, num_attention_heads=2,
        aspp_out_channels=8, **_named(),
    )  # fmt: skip
    processor = MobileViTImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    return MobileViTForSemanticSegmentation(config), processor


def _mask2former() -> Any:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6, **_named(),
    )  # fmt: skip
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=4)
    return Mask2FormerForUniversalSegmentation(config), processor


def _maskformer() -> Any:
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6, backbone_config=backbone,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **_named()
    )
    processor = MaskFormerImageProcessor(size={"height": 64, "width": 64}, num_labels=4)
    return MaskFormerForInstanceSegmentation(config), processor


def _beit() -> Any:
    from transformers import BeitConfig, BeitForSemanticSegmentation, BeitImageProcessor

    config = BeitConfig(
        **_VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], auxiliary_channels=8, use_relative_position_bias=True,
        **_named(),
    )  # fmt: skip
    return BeitForSemanticSegmentation(config), BeitImageProcessor(size=_SIZE, do_center_crop=False)


def _mobilenet() -> Any:
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation, MobileNetV2ImageProcessor

    config = MobileNetV2Config(depth_multiplier=0.25, image_size=128, **_named())
    processor = MobileNetV2ImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    return MobileNetV2ForSemanticSegmentation(config), processor


def _vitpose() -> Any:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[8, 8], hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, out_indices=[2],
    )  # fmt: skip
    names = {number: f"point {number}" for number in range(17)}
    config = VitPoseConfig(backbone_config=backbone, id2label=names, label2id={v: k for k, v in names.items()})
    return VitPoseForPoseEstimation(config), VitPoseImageProcessor(size={"height": 64, "width": 48})


DEPTH: dict[str, Any] = {
    "dpt": _dpt,
    "depth_anything": _depth_anything,
    "depth_anything_metric": lambda: _depth_anything(metric=True),
    "glpn": _glpn,
}
SEGMENTS: dict[str, Any] = {
    "segformer": _segformer,
    "dpt_segments": _dpt_segments,
    "mobilevit": _mobilevit,
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "beit": _beit,
    "mobilenet_v2": _mobilenet,
}
POSES: dict[str, Any] = {"vitpose": _vitpose}
