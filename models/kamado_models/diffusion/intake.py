"""What a request comes to: its options, checked and completed. Needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.media.inputs import MEDIA_INPUTS, opened_media
from kamado.media.pictures import open_picture
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions, resolve_picture_options

from .adapters_files import find_file, open_file
from .adapters_uses import check_picture, check_scales
from .conditions import with_length
from .control import completed, with_map
from .hires import Refinement, refinement
from .inputs import check_inputs, check_strength, fitted, plain_inputs, single_input
from .outcomes import Rates
from .outpainting import Outpainting, outpainting, with_defaults
from .pipelines import PipelineFactory, call_arguments, takes_size
from .prompts import check_weighting
from .related import call_parameters
from .schedulers import check_scheduler
from .sizes import Sizes, check_mask
from .step_cache import check_step_cache
from .table import makes
from .tiling import check_tiling
from .timed import check_ends, check_timed, plain_sound, rates_of, with_frames, with_spare_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request, checked."""

    asked: PictureOptions
    """Its options, with input pictures opened, as they were given."""
    first: PictureOptions
    """Those of the first pass."""
    kind: Any
    """The pipeline class of the first pass."""
    arguments: Mapping[str, Any]
    """Of that pipeline's call."""
    outpainting: Outpainting | None
    refinement: Refinement | None
    rates: Rates
    notes: tuple[str, ...]
    """What the caller should know of what became of the input pictures."""


class Intake:
    """Takes the requests for one model. The components of its factory need no weights."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, factory: PipelineFactory, sizes: Sizes) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._factory = factory
        self._sizes = sizes

    def order(self, options: Mapping[str, Any]) -> Order:
        """Check a request. Its adapters are looked at by `check_adapters`, or read by `Adapters.prepare`.

        Raises InvalidRequest."""
        factory, sizes = self._factory, self._sizes
        asked = _opened(sizes.completed(resolve_picture_options(options, defaults=self._checkpoint.defaults)))
        check_timed(asked, factory.reference, makes(factory.base.__name__))
        check_mask(asked)
        check_ends(asked, factory.components, factory.reference)
        asked = completed(asked, factory.reference, list(factory.nets.values()))
        grown = outpainting(plain := plain_inputs(with_map(asked), factory.components))
        first = plain if grown is None else grown.options
        kind = factory.kind(first)
        rates = rates_of(kind, first, factory.components, self._checkpoint)
        first = with_length(with_frames(first, kind, rates.fps), kind)
        first = plain_sound(first, rates.sample_rate, factory.components)
        first, count_note = sizes.whole_frames(first)
        first, note = self._sized(single_input(first, kind, call_parameters(kind)), kind)
        first = with_defaults(first, call_parameters(kind))
        check_strength(first, call_parameters(kind))
        arguments = with_spare_frames(call_arguments(kind, first), kind, factory.components)
        check_scheduler(factory.components.get("scheduler"), first.scheduler, first.steps)
        if asked.weighting is not None:
            check_weighting(arguments, kind, factory.components, factory.reference)
        if asked.tiling:
            check_tiling(kind, factory)
        if asked.step_cache is not None:
            check_step_cache(kind, factory)
        second = refinement(factory, first, sizes)
        if second is not None:
            sizes.check(second.expected, self._checkpoint, self._plan)
        return Order(
            asked=asked,
            first=first,
            kind=kind,
            arguments=arguments,
            outpainting=grown,
            refinement=second,
            rates=rates,
            notes=tuple(each for each in (count_note, note) if each is not None),
        )

    def _sized(self, first: PictureOptions, kind: Any) -> tuple[PictureOptions, str | None]:
        """The options of the first pass with the size that its pipeline is to be told, and a note. Raises
        InvalidRequest."""
        sizes = self._sizes
        check_inputs(first, sizes.multiple)
        told = takes_size(kind)
        if makes(kind.__name__) == "video" and told:
            first, note = sizes.like_area(first)
            sizes.check(first, self._checkpoint, self._plan)
            return first, note
        if (kind is not self._factory.base or first.mask is not None) and told:
            first = sizes.like_picture(first)
        sizes.check(first, self._checkpoint, self._plan)
        # Others without strength, such as upscalers, make pictures of another size than the input's.
        return fitted(first) if not told and "strength" in call_parameters(kind) else (first, None)


def check_adapters(order: Order, *, offline: bool) -> None:
    """Find the adapters of a request, and judge them by their headers.

    Raises InvalidRequest, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
    check_scales(order.arguments)
    references = [use.reference for use in order.asked.adapters]
    files = [open_file(reference, find_file(reference, offline=offline)) for reference in references]
    check_picture(order.arguments, sum(file.kind == "image" for file in files))


def _opened(options: PictureOptions) -> PictureOptions:
    """With pictures in place of paths, bytes and the like."""
    options = replace(
        options,
        image=_pictures(options.image),
        mask=_pictures(options.mask),
        control=_pictures(options.control),
        last_image=_pictures(options.last_image),
        **opened_media({"video": options.video, "audio": options.audio}, MEDIA_INPUTS),
    )
    shown = options.extra.get("ip_adapter_image")
    if shown is None:
        return options
    return replace(options, extra={**options.extra, "ip_adapter_image": _pictures(shown)})


def _pictures(source: Any) -> Any:
    if source is None:
        return None
    if isinstance(source, (list, tuple)):
        if not source:
            raise InvalidRequest("an empty list of pictures was given")
        return [open_picture(item) for item in source]
    return open_picture(source)
