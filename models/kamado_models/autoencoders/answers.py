"""What autoencoders make: reconstructions, latents, ways between pictures, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from kamado.errors import DoesNotFit, InvalidRequest
from kamado.memory.plan import Plan
from kamado.outputs import Embedding, Output, Scored, Scores, Video
from kamado.units import format_bytes

from ..library.kinds import Bench
from ..pixels import check_frames_fit, frames_of, picture_of, tensor_of
from .coding import decoded, draws, encoded, model_of, padded, prior
from .kind import COPIES, PART, SIDE
from .layouts import Facts
from .options import DEFAULT_FPS, DEFAULT_FRAMES, task_of

_OPTIMISM = 2
"""A picture is refused if so much less than what it should take is not there: the figure is an estimate."""
_SAMPLE_SIDE = 256
_CHUNK_PIXELS = 1 << 18


class Coded:
    """See Generator."""

    def __init__(self, facts: Facts, modules: Mapping[str, Any], plan: Plan) -> None:
        self.modules: Mapping[str, Any] = modules
        self._facts = facts
        self._room = plan.available_bytes - plan.held_weight_bytes
        self._size = torch.finfo(getattr(torch, plan.dtype)).bits // 8

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        task = task_of(self._facts, asked)
        found = {**asked, "task": task}
        if asked.get("tiling") and draws(self.modules[PART].config):
            raise InvalidRequest(
                "tiling cannot be used with this autoencoder: its decoder draws noise for whole pictures"
            )
        if task == "sample":
            usual = max(_SAMPLE_SIDE // self._facts.spatial, 1) * self._facts.spatial
            found |= {name: asked.get(name, usual) for name in ("width", "height")}
            self._check_sample(found)
            self._check_room(found["width"], found["height"], found.get("frames", 1), asked)
        if task == "decode":
            self._check_latents(asked["latents"])
            height, width = (side * self._facts.spatial for side in asked["latents"].shape[-2:])
            self._check_room(width, height, 1, asked)
        images = asked.get("image", ())
        for image in images if isinstance(images, tuple) else (images,):
            self._check_room(image.width, image.height, 1, asked)
        if task == "interpolate" and len({image.size for image in images}) > 1:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise InvalidRequest(f"task=interpolate needs pictures of one size, not {sizes}")
        if task == "interpolate":
            check_frames_fit(asked.get("frames", DEFAULT_FRAMES), *images[0].size)
        if "video" in asked:
            frames, height, width, _ = asked["video"].frames.shape
            if not frames:
                raise InvalidRequest("the video has no frames")
            self._check_room(width, height, frames, asked)
        return found

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        model = model_of(bench, tiling=asked.get("tiling", False))
        task = asked["task"]
        if task == "encode":
            return self._encode(bench, model, asked)
        if task == "interpolate":
            return self._interpolate(bench, model, asked)
        if task == "score":
            return self._score(bench, model, asked)
        if task == "decode":
            made = self._decode(bench, model, torch.tensor(asked["latents"]))
        elif task == "sample":
            latents = prior(bench, model, self._facts, asked["height"], asked["width"], asked.get("frames", 1))
            made = decoded(bench, model, self.modules[PART], self._facts, latents)[: asked.get("frames", 1)]
            bench.note(
                "latents of a normal distribution show textures, not pictures: what the autoencoder itself knows"
            )
        else:
            pixels = self._pixels(asked)
            made = self._again(bench, model, pixels, draw=asked.get("sample_posterior", False))
            if task == "error_map":
                errors = (made.clamp(-1, 1) - pixels).abs().mean(dim=1, keepdim=True)
                # 0: equal; 1: black in place of white.
                made = errors.expand(-1, 3, -1, -1) - 1
        bench.progress(1, 1)
        fps = asked["video"].fps if "video" in asked else asked.get("fps", DEFAULT_FPS)
        return self._shown(made, fps, is_video="video" in asked)

    def _encode(self, bench: Bench, model: Any, asked: Mapping[str, Any]) -> Embedding:
        pixels = self._pixels(asked)
        fitting = self._fitted(bench, pixels)
        latents = encoded(bench, model, self._facts, fitting, draw=asked.get("sample_posterior", False))
        found = latents.float().cpu()
        # Frames as rows are latents of one input, like those of other video autoencoders: channels first.
        one = found.transpose(0, 1) if self._facts.layout.frames_are_rows else found[0]
        bench.progress(1, 1)
        return Embedding(vectors=one.reshape(1, -1).numpy(), shape=tuple(one.shape))

    def _decode(self, bench: Bench, model: Any, latents: Tensor) -> Tensor:
        given = latents.transpose(0, 1) if self._facts.layout.frames_are_rows else latents[None]
        return decoded(bench, model, self.modules[PART], self._facts, given)

    def _interpolate(self, bench: Bench, model: Any, asked: Mapping[str, Any]) -> Video:
        pictures = [_pixels_of(image) for image in asked["image"]]
        height, width = pictures[0].shape[-2:]
        points = [encoded(bench, model, self._facts, self._fitted(bench, each)).float().cpu() for each in pictures]
        frames = asked.get("frames", DEFAULT_FRAMES)
        chunk = 1 if self._facts.has_frames else max(1, min(16, _CHUNK_PIXELS // (height * width)))
        between = _spherical if asked.get("path") == "spherical" else _linear
        made: list[Any] = []
        places = [frame * (len(points) - 1) / (frames - 1) for frame in range(frames)]
        for start in range(0, frames, chunk):
            rows = []
            for place in places[start : start + chunk]:
                leg = min(int(place), len(points) - 2)
                rows.append(between(points[leg], points[leg + 1], place - leg))
            part = decoded(bench, model, self.modules[PART], self._facts, torch.cat(rows))
            made.append(frames_of(part[:, :, :height, :width]))
            bench.progress(min(start + chunk, frames), frames)
        return Video(frames=numpy.concatenate(made), fps=asked.get("fps", DEFAULT_FPS))

    def _score(self, bench: Bench, model: Any, asked: Mapping[str, Any]) -> Scores:
        given = asked.get("image", ())
        images = given if isinstance(given, tuple) else (given,)
        sources = [self._pixels(asked)] if "video" in asked else [_pixels_of(image) for image in images]
        items = []
        for index, pixels in enumerate(sources):
            error = (self._again(bench, model, pixels).clamp(-1, 1) - pixels) / 2
            mse = float(error.square().mean())
            details = {
                "mae": float(error.abs().mean()),
                "max": float(error.abs().max()),
                "psnr_db": -10 * math.log10(mse) if mse else None,
            }
            if "video" in asked:
                details["frames"] = error.square().mean(dim=(1, 2, 3)).tolist()  # type: ignore[assignment]
            several = index if len(sources) > 1 else None
            items.append(Scored(value="reconstruction error (MSE)", score=mse, index=several, details=details))
            bench.progress(index + 1, len(sources))
        return Scores(items=tuple(sorted(items, key=lambda item: -item.score)))

    def _again(self, bench: Bench, model: Any, pixels: Tensor, *, draw: bool = False) -> Tensor:
        """The pixels encoded and decoded, of the same size."""
        frames, _, height, width = pixels.shape
        latents = encoded(bench, model, self._facts, self._fitted(bench, pixels), draw=draw)
        made = decoded(bench, model, self.modules[PART], self._facts, latents)
        if len(made) < frames:  # an autoencoder that cannot be had to give all of them
            made = torch.cat((made, made[-1:].expand(frames - len(made), -1, -1, -1)))
        return made[:frames, :, :height, :width]

    def _fitted(self, bench: Bench, pixels: Tensor) -> Tensor:
        found = padded(pixels, self._facts)
        if found.shape != pixels.shape:
            frames = f", and {self._facts.temporal} frames, after the first," if len(found) != len(pixels) else ""
            bench.note(
                f"latents stand for {self._facts.spatial} x {self._facts.spatial} pixels{frames} each: the edge was "
                "repeated to fill the last ones"
            )
        return found

    def _pixels(self, asked: Mapping[str, Any]) -> Tensor:
        """(frames, channels, height, width) in [-1, 1]."""
        if "video" not in asked:
            return _pixels_of(asked["image"])
        frames = torch.from_numpy(numpy.ascontiguousarray(asked["video"].frames)).permute(0, 3, 1, 2)
        return frames.float() / 127.5 - 1

    def _shown(self, made: Tensor, fps: float, *, is_video: bool) -> Output:
        if len(made) == 1 and not is_video:
            return picture_of(made[0])
        return Video(frames=frames_of(made), fps=fps)

    def _check_sample(self, asked: Mapping[str, Any]) -> None:
        for name in ("width", "height"):
            if asked[name] % self._facts.spatial:
                raise InvalidRequest(f"{name} must be a multiple of {self._facts.spatial}, not {asked[name]}")
        if "frames" in asked and not self._facts.is_video:
            raise InvalidRequest("frames is for autoencoders of videos, and for task=interpolate")
        if "fps" in asked and asked.get("frames", 1) == 1:
            raise InvalidRequest("fps is for several frames; give frames too")

    def _check_latents(self, latents: Any) -> None:
        wanted = 4 if self._facts.is_video or self._facts.has_frames else 3
        if latents.ndim != wanted or latents.shape[0] != self._facts.channels:
            what = ["channels", "frames", "height", "width"] if wanted == 4 else ["channels", "height", "width"]
            raise InvalidRequest(
                f"latents must be [{', '.join(what)}] with {self._facts.channels} channels, not {list(latents.shape)}"
            )

    def _check_room(self, width: int, height: int, frames: int, asked: Mapping[str, Any]) -> None:
        """Raise DoesNotFit for what is too large, before it is tried."""
        area = min(width * height, SIDE**2) if asked.get("tiling") else width * height
        needed = self._facts.features * COPIES * self._size * area * frames // _OPTIMISM
        if needed > self._room:
            can_tile = self._facts.layout.tiling and not asked.get("tiling")
            advice = "Let it be cut into tiles (tiling)." if can_tile else "Make it smaller."
            many = f"{frames} frames of " if frames > 1 else ""
            raise DoesNotFit(
                f"{many}{width} x {height} pixels need about {format_bytes(needed)} beside the weights, and "
                f"{format_bytes(self._room)} may be used. {advice}",
                needed_bytes=needed, available_bytes=self._room, options=(advice,),
            )  # fmt: skip


def _pixels_of(image: Image.Image) -> Tensor:
    return tensor_of(image)[None] * 2 - 1


def _linear(start: Tensor, end: Tensor, share: float) -> Tensor:
    return start + (end - start) * share


def _spherical(start: Tensor, end: Tensor, share: float) -> Tensor:
    """As if both were on one sphere, so that latents keep their length on the way."""
    one, two = start.flatten().double(), end.flatten().double()
    cosine = torch.nn.functional.cosine_similarity(one, two, dim=0).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    if torch.sin(angle).abs() < 1e-6:
        return _linear(start, end, share)
    made = (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * two) / torch.sin(angle)
    return made.float().view_as(start)
