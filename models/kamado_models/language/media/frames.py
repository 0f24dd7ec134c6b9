"""What takes a video's frames where transformers' own video processors cannot be had: those are written on torchvision,
which has no build for every machine. Frames are prepared as the checkpoint's pictures are; how many are taken, and how
they are laid out, is as transformers' classes of the model type do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FPS = 2.0
"""Frames that are looked at of a second, unless the checkpoint says otherwise."""
LEAST_FRAMES, MOST_FRAMES = 4, 768
_GIVEN = ("fps", "num_frames", "min_frames", "max_frames", "temporal_patch_size", "merge_size")
_PATCHED = "merge_size"
"""What only image processors have that lay pictures out as rows of patches."""


class FrameProcessor:
    """Stands in for a `BaseVideoProcessor`. `rates`: frames a second of the next call's videos, 0 where unknown."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, images: Any, settings: Mapping[str, Any]) -> None:
        """`images`: the checkpoint's image processor; `settings`: its `video_preprocessor_config.json`."""
        self._images = images
        self.rates: Sequence[float] = ()
        self._is_patched = hasattr(images, _PATCHED)
        self._size = settings.get("size")
        known = {name: settings.get(name, getattr(images, name, None)) for name in _GIVEN}
        self.temporal_patch_size = int(known["temporal_patch_size"] or (2 if self._is_patched else 1))
        self.merge_size = int(known["merge_size"] or 1)
        self.fps = float(known["fps"] or FPS)
        self.num_frames: int | None = known["num_frames"]
        self._least, self._most = int(known["min_frames"] or LEAST_FRAMES), int(known["max_frames"] or MOST_FRAMES)

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        """`pixel_values_videos` of uint8 videos (frames, height, width, 3), with `video_grid_thw` (videos, 3) where
        these are patches, and which frames were taken as `video_metadata`."""
        import numpy as np
        import torch
        from transformers.video_utils import VideoMetadata, make_batched_videos

        made, grids, facts = [], [], []
        for video, rate in zip(make_batched_videos(videos), self.rates, strict=True):
            chosen = self._chosen(len(video), rate)
            frames = [np.asarray(video[number]) for number in chosen]
            pixels, grid = self._patches(frames) if self._is_patched else (self._pixels(frames), None)
            made.append(pixels)
            grids.append(grid)
            told = VideoMetadata(total_num_frames=len(video), fps=rate or None, frames_indices=chosen)
            if rate == 0:
                told.fps, told.frames_indices = FPS, list(range(len(chosen)))
            facts.append(told)
        found: dict[str, Any] = {"video_metadata": facts}
        if self._is_patched:
            rows = torch.from_numpy(np.concatenate(made))
            return {**found, "pixel_values_videos": rows, "video_grid_thw": torch.tensor(grids)}
        if any(pixels.shape != made[0].shape for pixels in made):
            raise ValueError("videos of one prompt must have equally many frames")
        return {**found, "pixel_values_videos": torch.from_numpy(np.stack(made))}

    def _chosen(self, total: int, rate: float) -> list[int]:
        """Numbers of the frames that are looked at: all, where nobody knows how fast they come."""
        if not rate:
            return list(range(total))
        wanted = total / rate * self.fps if self.num_frames is None else self.num_frames
        count = int(min(max(wanted, self._least), self._most, total))
        count = max(count // self.temporal_patch_size * self.temporal_patch_size, 1)
        if count == 1:
            return [0]
        return [round(number * (total - 1) / (count - 1)) for number in range(count)]

    def _pixels(self, frames: list[Any]) -> Any:
        """(frames, channels, height, width)"""
        import numpy as np

        whole = {"crop_to_patches": False} if hasattr(self._images, "crop_to_patches") else {}
        pixels = self._images(frames, **whole)["pixel_values"]
        return np.stack([np.asarray(each).reshape(-1, *np.asarray(each).shape[-3:])[0] for each in pixels])

    def _patches(self, frames: list[Any]) -> tuple[Any, list[int]]:
        """Patches (T * height * width, channels * frames of a patch * side * side) and the grid (T, height, width). A
        picture's patch is the same frame several times."""
        import numpy as np

        size = {"size": self._size} if self._size else {}
        each = self._images(frames, **size)
        grids = np.asarray(each["image_grid_thw"])
        _, height, width = (int(number) for number in grids[0])
        depth, side = int(self._images.temporal_patch_size), int(self._images.patch_size)
        rows = np.asarray(each["pixel_values"]).reshape(len(frames), height * width, -1, depth, side, side)[:, :, :, 0]
        multiple = self.temporal_patch_size
        if missing := -len(rows) % multiple:
            rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        grouped = rows.reshape(-1, multiple, *rows.shape[1:]).transpose(0, 2, 3, 1, 4, 5)
        return grouped.reshape(-1, int(np.prod(grouped.shape[2:]))), [len(grouped), height, width]
