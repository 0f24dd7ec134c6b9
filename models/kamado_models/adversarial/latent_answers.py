"""Pictures, and walks between pictures, of generators with latents."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from kamado.checkpoint.types import Checkpoint
from kamado.outputs import Output, Video

from ..library.kinds import Bench
from ..pixels import check_frames_fit, frames_of, picture_of
from . import latent_options
from .latent_draws import drawn, drawn_within, lerp, slerp, stations
from .layouts import Layout

_CHUNK_PIXELS = 1 << 18
_CHUNK_FRAMES = 16
_MEAN_OF = 4096
"""Styles whose mean stands for that of all, where none is stored."""


class Pictures:
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout, modules: Mapping[str, Any]) -> None:
        self.modules: Mapping[str, Any] = modules
        self._checkpoint = checkpoint
        self._layout = layout
        self._mean: Tensor | None = None
        self._lock = threading.Lock()

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        classes = latent_options.classes_of(self._checkpoint, self._layout, asked)
        if "interpolate" in asked:
            height, width = self._layout.size
            check_frames_fit(asked.get("frames", latent_options.DEFAULT_FRAMES), width, height)
        return {**asked, "classes": classes}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        seeds = asked.get("interpolate", (bench.seed,))
        points = [self._point(bench, asked, seed, place) for place, seed in enumerate(seeds)]
        if "interpolate" not in asked:
            picture = self._drawn(bench, asked, *points[0])
            bench.progress(1, 1)
            return picture_of(picture[0])
        return self._walk(bench, asked, points)

    def _walk(self, bench: Bench, asked: Mapping[str, Any], points: Sequence[tuple[Tensor, Tensor | None]]) -> Video:
        frames = asked.get("frames", latent_options.DEFAULT_FRAMES)
        places = stations(len(points), frames, loop=asked.get("loop", False))
        # Styles lie in a flat space, latents on a sphere.
        between = lerp if self._layout.num_styles else slerp
        pixels = self._layout.size[0] * self._layout.size[1]
        chunk = max(1, min(_CHUNK_FRAMES, _CHUNK_PIXELS // pixels))
        made: list[Any] = []
        for start in range(0, frames, chunk):
            part = places[start : start + chunk]
            codes = torch.cat([between(points[one][0], points[two][0], share) for one, two, share in part])
            classes = None
            if points[0][1] is not None:
                classes = torch.cat(
                    [lerp(_held(points[one][1]), _held(points[two][1]), share) for one, two, share in part]
                )
            made.append(frames_of(self._drawn(bench, asked, codes, classes)))
            bench.progress(min(start + chunk, frames), frames)
        return Video(frames=numpy.concatenate(made), fps=asked.get("fps", latent_options.DEFAULT_FPS))

    def _point(self, bench: Bench, asked: Mapping[str, Any], seed: int, place: int) -> tuple[Tensor, Tensor | None]:
        """What a picture is made of: styles (1, styles, numbers), or latents (1, numbers), and shares of classes."""
        layout = self._layout
        classes = self._shares(bench, asked, seed, place)
        if not layout.num_styles:
            if layout.truncates:
                return drawn_within(seed, layout.z_size, asked.get("truncation", 1.0)), classes
            return drawn(seed, layout.z_size), classes
        styles = self._styles(bench, asked, seed, classes)
        if "mix" in asked:
            other = self._styles(bench, asked, asked["mix"], classes)
            chosen = asked.get("mix_layers", range(layout.num_styles // 2, layout.num_styles))
            styles = styles.clone()
            styles[:, list(chosen)] = other[:, list(chosen)]
        return styles, None

    def _styles(self, bench: Bench, asked: Mapping[str, Any], seed: int, classes: Tensor | None) -> Tensor:
        layout = self._layout
        style: Tensor = bench.model("mapping")(self._there(bench, drawn(seed, layout.z_size)), classes).float()
        styles = style[:, None].repeat(1, layout.num_styles, 1)
        if "truncation" in asked:
            count = asked.get("truncation_layers", layout.num_styles)
            mean = self._mean_style(bench)
            styles[:, :count] = mean + asked["truncation"] * (styles[:, :count] - mean)
        return styles

    def _mean_style(self, bench: Bench) -> Tensor:
        if self._layout.mean_stored:
            found: Tensor = self.modules["mapping"].w_avg
            return self._there(bench, found).float()
        if self._mean is None:
            latents = torch.randn(_MEAN_OF, self._layout.z_size, generator=torch.Generator().manual_seed(0))
            classes = None
            if count := self._layout.num_classes:  # each as often as the others
                classes = torch.nn.functional.one_hot(torch.arange(_MEAN_OF) % count, count).float()
                classes = self._there(bench, classes)
            made = bench.model("mapping")(self._there(bench, latents), classes)
            mean = made.float().mean(dim=0)
            with self._lock:
                self._mean = mean
        return self._mean

    def _shares(self, bench: Bench, asked: Mapping[str, Any], seed: int, place: int) -> Tensor | None:
        """One class, as shares (1, classes): what was asked for, else drawn by the seed."""
        count = self._layout.num_classes
        if not count:
            return None
        if asked["classes"]:
            number = asked["classes"][place]
        else:
            number = numpy.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, 1]).randint(count)
            bench.note(f"seed {seed}: class {number}, as none was named (class_label)")
        shares = torch.nn.functional.one_hot(torch.tensor([number]), count).float()
        return self._there(bench, shares) if self._layout.num_styles else shares

    def _drawn(self, bench: Bench, asked: Mapping[str, Any], code: Tensor, classes: Tensor | None) -> Tensor:
        """Pictures (rows, channels, height, width) in [-1, 1], of codes and classes by rows."""
        code = self._there(bench, code)
        layout = self._layout
        if layout.num_styles:
            synthesis = bench.model("synthesis")
            made = synthesis(code, self._noises(bench, asked, len(code))) if layout.noises else synthesis(code)
        elif classes is not None:
            more = (asked.get("truncation", 1.0),) if layout.stats_by_truncation else ()
            made = bench.model("generator")(code, self._there(bench, classes), *more)
        elif layout.noises:
            made = bench.model("generator")(code, self._noises(bench, asked, len(code)))
        else:
            made = bench.model("generator")(code)
        return made  # type: ignore[no-any-return]

    def _noises(self, bench: Bench, asked: Mapping[str, Any], rows: int) -> list[Tensor]:
        mode = asked.get("noise", self._layout.noises[0])
        if mode == "none":
            return []
        if mode == "const":
            stored = [self._there(bench, each) for each in self.modules["synthesis"].noises()]
            return [each.expand(rows, -1, -1, -1) for each in stored]
        # The same for all frames of a walk: the way shows, not the noise.
        generator = torch.Generator().manual_seed(bench.seed)
        made = [torch.randn(1, 1, size, size, generator=generator) for size in self._layout.noise_sizes]
        return [self._there(bench, each).expand(rows, -1, -1, -1) for each in made]

    def _there(self, bench: Bench, tensor: Tensor) -> Tensor:
        return tensor.to(bench.device, bench.dtype)


def _held(classes: Tensor | None) -> Tensor:
    assert classes is not None, "all points have classes, or none has"
    return classes
