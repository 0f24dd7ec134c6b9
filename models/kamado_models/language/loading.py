"""Bring a language model into memory as planned: tokenizer, weights, state memory, lane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.learned import Learning
from kamado.memory.placement import same_blocks
from kamado.memory.plan import Plan
from kamado.quant import Quant
from kamado.requests import Sampling, resolve_sampling
from kamado.weights.outside.parked import ParkedModules
from kamado.weights.outside.weights import OutsideWeights, kept_single
from kamado.weights.packed import pack_linears
from kamado.weights.prepared.keeping import Pending
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.quantized.tensor import held_bytes
from kamado.weights.quantized.tiled import tile_weights
from kamado.weights.stream import ReadProgress

from .batching import UNKNOWN, batching_of
from .chat_template import started_worker
from .config import as_stored, transformers_classes
from .decoder import Decoder
from .execution import choose_execution, stated_vocab_size, vocab_size
from .gguf.tensors import tensors_from_gguf
from .intake import TextFacts, TextIntake
from .learning import learning
from .materialize import LoadReport, materialize
from .media.processor import Senses, load_senses
from .media.sizes import text_quant
from .model import Execution, LanguageModel
from .needs import names_outside, packs_linears
from .prepared import Facts, after_first_result, entry_of, found_in, kept_in
from .shape import stacks_turned, text_shape
from .tokenizer import Tokenizer, load_tokenizer, may_have_template

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment, *, own_code: bool = False) -> LanguageModel:
    """See Family.load. `own_code`: the model's classes are the checkpoint's own, and may be run."""
    with ExitStack() as undone:
        tokenizer = _tokenizer(checkpoint, env.request)
        undone.callback(tokenizer.close)
        senses = None if own_code else load_senses(checkpoint)
        loaded = _loaded(checkpoint, plan, env, tokenizer, undone, own_code=own_code, senses=senses)
        undone.pop_all()  # it is the model's now
        return loaded


def _tokenizer(checkpoint: Checkpoint, request: Mapping[str, Any] | None) -> Tokenizer:
    """With what renders a chat for the request that will follow, if it may be one: it gets ready meanwhile."""
    is_chat = request is not None and request.get("chat") is not False and not request.get("prompt_tokens")
    worker = started_worker() if is_chat and may_have_template(checkpoint) else None
    try:
        tokenizer = load_tokenizer(checkpoint)
    except BaseException:
        if worker is not None:
            worker.kill()
        raise
    if worker is not None:
        tokenizer.adopt(worker)
    return tokenizer


def _loaded(
    checkpoint: Checkpoint,
    plan: Plan,
    env: LoadEnvironment,
    tokenizer: Tokenizer,
    undone: ExitStack,
    *,
    own_code: bool,
    senses: Senses | None,
) -> LanguageModel:
    """`undone` gets what must be closed if it fails."""
    entry = None if own_code else entry_of(checkpoint, plan, env)
    found = found_in(entry)
    model: Any = found.stand_in(plan) if found is not None else None
    if env.request is not None and not own_code:
        _check_order(env.request, checkpoint, plan, tokenizer, senses, stand_in=model)
    env.ledger.enter(plan.device, env.owner, "weights", plan.held_weight_bytes)
    outside = _outside(checkpoint, plan, env)
    if outside is not None:
        undone.callback(outside.close)
    with _explained(checkpoint, own_code):
        if isinstance(env.parked, ParkedModules):
            model = env.parked.back(plan.device)[""]
        elif model is None and found is not None:
            model = found.model(checkpoint, plan)
        facts = found.facts if found is not None and model is not None else Facts(wants_sizes=entry is not None)
        is_found = found is not None and model is not None
        if model is None:
            model, _ = read_model(
                checkpoint,
                dtype=plan.dtype,
                device=plan.device,
                quant=plan.quant,
                progress=env.progress,
                own_code=own_code,
                outside=outside,
            )
        # What the tests found of the library's model types says nothing of a checkpoint's own class of that name.
        batching = UNKNOWN if own_code else batching_of(text_shape(checkpoint.config))
        kept = None
        if outside is not None:
            held = outside.attach({"": model})
        else:
            held = held_bytes((*model.parameters(), *model.buffers()))
            held += tile_weights(model) if plan.device == "cpu" else 0
            packs = packs_linears(plan.device, plan.dtype, batching) and not isinstance(model, Decoder)
            kept = None if is_found else kept_in(entry, model, packs=packs)
            held += pack_linears(model) if packs else 0
        _correct(env, plan, "weights", plan.held_weight_bytes, held)
        # Weights that are outside of the device come and go during a forward.
        learns = None if own_code or plan.outside_bytes else _learning(checkpoint, plan)
        execution = choose_execution(model, plan, env, batching, facts, learns)
        undone.callback(execution.close)
    if outside is not None:
        execution = replace(execution, close=_in_turn(execution.close, outside.close))
    known = _facts(checkpoint, plan, model, stepwise=env.deterministic)
    if kept is not None:
        execution = _keeping(execution, kept.write(facts.as_json()))
    return LanguageModel(checkpoint, plan, model, tokenizer, execution, known, draft=env.draft, senses=senses)


def _keeping(execution: Execution, pending: Pending) -> Execution:
    """What is left for later loads is written once somebody has an answer."""
    after_first_result(execution.lane, pending.begin)
    return replace(execution, close=_in_turn(pending.abandon, execution.close))


def _explained(checkpoint: Checkpoint, own_code: bool) -> AbstractContextManager[Any]:
    if not own_code:
        return nullcontext()
    from .own_code import failures_explained

    return failures_explained(checkpoint, "its own code does not run here")


def _facts(checkpoint: Checkpoint, plan: Plan, model: Any, *, stepwise: bool = False) -> TextFacts:
    """`model`: transformers', or its stand-in."""
    decoder_start = () if isinstance(model, Decoder) else _decoder_start(checkpoint, model.config)
    return _text_facts(checkpoint, plan, vocab_size(model), decoder_start, stepwise=stepwise)


def _text_facts(
    checkpoint: Checkpoint, plan: Plan, vocab_size: int, decoder_start: tuple[int, ...], *, stepwise: bool = False
) -> TextFacts:
    return TextFacts(
        sampling=_sampling_defaults(checkpoint),
        vocab_size=vocab_size,
        context_tokens=plan.context_tokens,
        stepwise=stepwise,
        decoder_start=decoder_start,
    )


def check_requests(requests: Iterable[Mapping[str, Any]], checkpoint: Checkpoint, plan: Plan) -> None:
    """See Family.check_requests."""
    tokenizer = load_tokenizer(checkpoint)
    try:
        senses = load_senses(checkpoint)
        for request in requests:
            _check_order(request, checkpoint, plan, tokenizer, senses)
    finally:
        tokenizer.close()


def _check_order(
    request: Mapping[str, Any],
    checkpoint: Checkpoint,
    plan: Plan,
    tokenizer: Tokenizer,
    senses: Senses | None,
    *,
    stand_in: Decoder | None = None,
) -> None:
    """Raise what is wrong with a request, before the model is there."""
    if stand_in is not None:
        facts = _facts(checkpoint, plan, stand_in)
    else:
        config, _ = transformers_classes(checkpoint)
        stated = stated_vocab_size(config)
        if stated is None:
            return
        facts = _text_facts(checkpoint, plan, stated, _decoder_start(checkpoint, config))
    TextIntake(checkpoint.reference, tokenizer, facts, senses).order(request)


def read_model(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    device: str,
    quant: Quant | None = None,
    progress: Callable[[int, int], None] | None = None,
    own_code: bool = False,
    outside: OutsideWeights | None = None,
) -> tuple[Any, LoadReport]:
    """transformers' model with the checkpoint's weights, as the library has it. `checkpoint.config` must be in the form
    of a `config.json` (see `family.configured`). `own_code`: see `transformers_classes`. `outside`: weights that are
    not to be held on the device; its `attach` brings the others there. Raises UnsupportedCheckpoint.
    """
    config, model_class = transformers_classes(checkpoint, own_code=own_code)
    torch_dtype = _DTYPES[dtype]
    if checkpoint.layout == "gguf":
        meter = ReadProgress(checkpoint.weight_bytes, progress) if progress is not None else None
        stored = as_stored(checkpoint, quant)
        tensors: Mapping[str, Any] = tensors_from_gguf(stored, config, torch_dtype, progress=meter)
        progress = None
    else:
        tensors = stored_tensors(as_stored(checkpoint).tensors, torch_dtype)
    quant = text_quant(checkpoint.config, quant)
    if quant is not None:
        tensors = quantizing(tensors, quant, torch_dtype, device, turned=stacks_turned(checkpoint.config))
    if outside is not None:
        if checkpoint.layout == "gguf":
            outside.names = same_blocks(outside.names, checkpoint.tensors, tensors)
        tensors, device = outside.reading(tensors, torch_dtype, single=kept_single(model_class)), "cpu"
    return materialize(model_class, config, tensors, dtype=torch_dtype, device=device, progress=progress)


def _in_turn(*functions: Callable[[], None]) -> Callable[[], None]:
    """Calls all of them, also if one raises."""

    def call() -> None:
        with ExitStack() as stack:
            for function in reversed(functions):
                stack.callback(function)

    return call


def _outside(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> OutsideWeights | None:
    """Room for the weights that are not on the device; None where all are. Raises DoesNotFit where the disk is full."""
    names = names_outside(as_stored(checkpoint, plan.quant), plan)
    return OutsideWeights.of(plan, names, env.ledger, env.owner) if names else None


def _learning(checkpoint: Checkpoint, plan: Plan) -> Learning:
    return learning(
        as_stored(checkpoint, plan.quant),
        text_shape(checkpoint.config),
        dtype=plan.dtype,
        quant=plan.quant,
        kv_dtype=plan.kv_dtype,
        device=plan.device,
    )


def _correct(env: LoadEnvironment, plan: Plan, kind: str, planned: int, real: int) -> None:
    """Make the ledger say what is, where the plan was off."""
    if real > planned:
        env.ledger.enter(plan.device, env.owner, kind, real - planned)
    elif real < planned:
        env.ledger.leave(plan.device, env.owner, kind, planned - real)


def _generation_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = checkpoint.files.get("generation_config.json")
    return read_json_object(path) if path is not None else {}


def _sampling_defaults(checkpoint: Checkpoint) -> Sampling:
    """As the checkpoint's authors recommend it, as far as it is usable; where they do not ask for sampling, greedy."""
    config = _generation_config(checkpoint)
    names = ["repetition_penalty"]
    defaults = Sampling()
    if config.get("do_sample") is True:
        names += ["temperature", "top_k", "top_p", "min_p", "typical_p"]
        defaults = Sampling(temperature=1.0, top_k=50)  # transformers' own where sampling is on
    for name in names:
        with suppress(InvalidRequest):
            defaults = resolve_sampling({name: config.get(name)}, defaults)
    return defaults


def _decoder_start(checkpoint: Checkpoint, config: Any) -> tuple[int, ...]:
    """First tokens of an encoder-decoder model's answer: the start token, and one that is always forced behind it."""
    if not config.is_encoder_decoder:
        return ()
    generation = _generation_config(checkpoint)

    def token(name: str) -> int | None:
        value = generation.get(name, getattr(config, name, None))
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    start = next(
        (t for t in map(token, ("decoder_start_token_id", "bos_token_id", "pad_token_id")) if t is not None), None
    )
    if start is None:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: no decoder_start_token_id in its configuration")
    forced = token("forced_bos_token_id")
    return (start,) if forced is None else (start, forced)
