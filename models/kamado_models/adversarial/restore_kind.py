"""Networks that restore or enlarge pictures as a kind of model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.options import Check, Options, anything, whole

from ..library.kinds import About, Generator, Part, num_parameters
from .restore_layouts import ARCHITECTURES, architecture, closed, plain_names

if TYPE_CHECKING:
    from ..library.loading import Loader

TILE = 512
"""Height and width of tiles, and what is not cut into tiles, in pixels that go in."""
OVERLAP = 32
_FEATURES = 64
_INPAINTING = ("LaMa",)
DRAWING = ("GFPGAN", "AuraSR")
"""Architectures that draw noise while they run: it is the answer's own then, and forwards are not shared."""
_FACES = ("GFPGAN", "RestoreFormer")


class RestoreKind:
    """See Kind."""

    name = "restoration"
    about = About(
        architectures=ARCHITECTURES,
        tasks=("image-to-image",),
        oracle="spandrel's own call, all of them; GFPGAN's network as its authors call it; random weights; "
        "Real-ESRGAN's three for real",
        batching="tiles of equal size share forwards",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        # Nobody else reads ncnn's files, and what is wrong with one is said later.
        return checkpoint.layout == "ncnn" or architecture(checkpoint) is not None or closed(checkpoint) is not None

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        _open(checkpoint)
        return ("image-to-image",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        _open(checkpoint)
        return ("image",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks: dict[str, Check] = {"image": anything}
        name = _open(checkpoint)
        if name in _INPAINTING:
            checks["mask"] = anything
        elif name not in _FACES:
            checks |= {"tile": whole(0, 1 << 16), "overlap": whole(0, 1 << 12)}
        inputs = {each: "image" for each in ("image", "mask") if each in checks}
        what = f"a network that restores {'faces' if name in _FACES else 'pictures'} ({name})"
        return Options(
            what=what,
            checks=checks,
            inputs=inputs,  # type: ignore[arg-type]
            needs=("image",),
            takes_n=name in DRAWING,
        )

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return {
            "architecture": _open(checkpoint),
            "parameters": num_parameters(self.parts(checkpoint)["network"].tensors),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        _open(checkpoint)
        tensors = plain_names(checkpoint)
        return {
            "network": Part(
                tensors=tensors, is_whole=True, activation_bytes=lambda size: TILE**2 * _FEATURES * 6 * size
            )
        }

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if architecture(checkpoint) in _INPAINTING and "mask" not in asked:
            raise InvalidRequest("mask is missing: white where the picture is to be painted anew")
        if isinstance(asked["image"], (list, tuple)) or isinstance(asked.get("mask"), (list, tuple)):
            raise InvalidRequest("give one image; several are several requests")
        tile = asked.get("tile", TILE)
        if "overlap" in asked and not tile:
            raise InvalidRequest("overlap is for tiles, and tile=0 asks for none")
        if tile and asked.get("overlap", min(OVERLAP, tile // 4)) * 2 > tile:
            raise InvalidRequest(f"overlap must be at most half of the tile of {tile} pixels, not {asked['overlap']}")

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .restore_answers import Restored, network

        found = loader.made("network", network, self.parts(checkpoint)["network"].tensors)
        return Restored({"network": found}, loader.plan)


def _open(checkpoint: Checkpoint) -> str | None:
    """The name of the architecture. Raises UnsupportedCheckpoint for one whose code is not free."""
    name = closed(checkpoint)
    if name is not None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {name} networks are not run: their published code is for non-commercial use only"
        )
    return architecture(checkpoint)
