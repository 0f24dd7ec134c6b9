"""Bring a language model into memory as planned: tokenizer, weights, state memory, lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.memory.learned import Learning
from kamado.memory.placement import same_blocks
from kamado.memory.plan import Plan
from kamado.quant import Quant
from kamado.requests import Sampling, resolve_sampling
from kamado.sampling.sampler import Sampler
from kamado.speculation.costs import LaneSpeculation
from kamado.weights.outside.parked import ParkedModules
from kamado.weights.outside.weights import OutsideWeights, kept_single
from kamado.weights.packed import pack_linears
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.quantized.tensor import held_bytes
from kamado.weights.quantized.tiled import tile_weights
from kamado.weights.stream import ReadProgress

from .batching import ALONE, PAGED, ROWS_EQUAL, ROWS_RAGGED, ROWS_STATE, UNKNOWN, batching_of
from .config import as_stored, transformers_classes
from .gguf.tensors import tensors_from_gguf
from .intake import TextFacts, TextIntake
from .learning import LANE, learning
from .materialize import LoadReport, materialize
from .model import Execution, LanguageModel
from .native_probe import native_step
from .needs import BLOCK_TOKENS, names_outside, packs_linears
from .own_code import failures_explained
from .paged import PagedLane
from .paged_probe import probe_paged
from .pages import LayerShape, page_store
from .positions import fields_of, longrope_switch, shifting_positions
from .recording import captured_steps, may_record
from .rows import RowLane, RowMemory, measure_state, probe
from .rows_memory import WORKSPACE_FACTOR
from .shape import stacks_turned, text_shape
from .tokenizer import Tokenizer, load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment, *, own_code: bool = False) -> LanguageModel:
    """See Family.load. `own_code`: the model's classes are the checkpoint's own, and may be run."""
    with ExitStack() as undone:
        tokenizer = load_tokenizer(checkpoint)
        undone.callback(tokenizer.close)
        loaded = _loaded(checkpoint, plan, env, tokenizer, undone, own_code=own_code)
        undone.pop_all()  # it is the model's now
        return loaded


def _loaded(
    checkpoint: Checkpoint,
    plan: Plan,
    env: LoadEnvironment,
    tokenizer: Tokenizer,
    undone: ExitStack,
    *,
    own_code: bool,
) -> LanguageModel:
    """`undone` gets what must be closed if it fails."""
    if env.request is not None and not own_code:
        _check_order(env.request, checkpoint, plan, tokenizer)
    env.ledger.enter(plan.device, env.owner, "weights", plan.held_weight_bytes)
    outside = _outside(checkpoint, plan, env)
    if outside is not None:
        undone.callback(outside.close)
    with failures_explained(checkpoint, "its own code does not run here") if own_code else nullcontext():
        if isinstance(env.parked, ParkedModules):
            model: Any = env.parked.back(plan.device)[""]
            held = held_bytes((*model.parameters(), *model.buffers()))
        else:
            model, report = read_model(
                checkpoint,
                dtype=plan.dtype,
                device=plan.device,
                quant=plan.quant,
                progress=env.progress,
                own_code=own_code,
                outside=outside,
            )
            held = report.weight_bytes
        config = model.config
        # What the tests found of the library's model types says nothing of a checkpoint's own class of that name.
        batching = UNKNOWN if own_code else batching_of(text_shape(checkpoint.config))
        if outside is not None:
            held = outside.attach({"": model})
        else:
            held += pack_linears(model) if packs_linears(plan.device, plan.dtype, batching) else 0
            held += tile_weights(model) if plan.device == "cpu" else 0
        _correct(env, plan, "weights", plan.held_weight_bytes, held)
        # Weights that are outside of the device come and go during a forward.
        learns = None if own_code or plan.outside_bytes else _learning(checkpoint, plan)
        execution = choose_execution(model, config, plan, env, batching, learns)
        undone.callback(execution.close)
    if outside is not None:
        execution = replace(execution, close=_in_turn(execution.close, outside.close))
    facts = _facts(checkpoint, plan, config, _vocab_size(model), stepwise=env.deterministic)
    return LanguageModel(checkpoint, plan, model, tokenizer, execution, facts)


def _facts(checkpoint: Checkpoint, plan: Plan, config: Any, vocab_size: int, *, stepwise: bool = False) -> TextFacts:
    return TextFacts(
        sampling=_sampling_defaults(checkpoint),
        vocab_size=vocab_size,
        context_tokens=plan.context_tokens,
        stepwise=stepwise,
        decoder_start=_decoder_start(checkpoint, config),
    )


def check_request(request: Mapping[str, Any], checkpoint: Checkpoint, plan: Plan) -> None:
    """See Family.check_request."""
    tokenizer = load_tokenizer(checkpoint)
    try:
        _check_order(request, checkpoint, plan, tokenizer)
    finally:
        tokenizer.close()


def _check_order(request: Mapping[str, Any], checkpoint: Checkpoint, plan: Plan, tokenizer: Tokenizer) -> None:
    """Raise what is wrong with a request, before the model is there."""
    config, _ = transformers_classes(checkpoint)
    vocab_size = _stated_vocab_size(config)
    if vocab_size is None:
        return
    TextIntake(checkpoint.reference, tokenizer, _facts(checkpoint, plan, config, vocab_size)).order(request)


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


def choose_execution(
    model: Any, config: Any, plan: Plan, env: LoadEnvironment, batching: str, learns: Learning | None = None
) -> Execution:
    """The lane and memory for what `batching_of` said: pages or rows. What it does not know runs over pages where its
    attention allows. `learns`: what is told the peaks of its forwards."""
    vocab_size = _vocab_size(model)
    pageable = not config.is_encoder_decoder and shifting_positions(fields_of(config)) is None
    if batching == PAGED or (batching == UNKNOWN and pageable):
        verdict = probe_paged(model, vocab_size, known=batching == PAGED)
        if verdict.layers is not None:
            return _paged(model, verdict.layers, plan, env, learns, is_known=batching == PAGED)
    if plan.kv_dtype != "auto":
        raise InvalidRequest(f"{plan.reference} cannot run over pages here, so its KV cache cannot be {plan.kv_dtype}")
    return _rows(model, config, vocab_size, plan, env, learns)


def _vocab_size(model: Any) -> int:
    """As the configuration says it; classes of a checkpoint's own may call it otherwise."""
    stated = _stated_vocab_size(model.config)
    return int(model.get_input_embeddings().weight.shape[0]) if stated is None else stated


def _stated_vocab_size(config: Any) -> int | None:
    stated = getattr(config.get_text_config(), "vocab_size", None)
    return None if stated is None else int(stated)


def _paged(
    model: Any,
    layers: tuple[LayerShape, ...],
    plan: Plan,
    env: LoadEnvironment,
    learns: Learning | None,
    *,
    is_known: bool,
) -> Execution:
    """`is_known`: the model's type is one of those that the tests compare."""
    block_bytes = BLOCK_TOKENS * sum(layer.bytes_per_token(model.dtype, plan.kv_dtype) for layer in layers)
    num_blocks = max(plan.kv_bytes // block_bytes, 1)
    env.ledger.enter(plan.device, env.owner, "kv", num_blocks * block_bytes)
    windows = [layer.window for layer in layers if layer.window is not None]
    records = is_known and may_record(plan, env, spare_bytes=block_bytes)
    store = page_store(layers, num_blocks + records, BLOCK_TOKENS, model.dtype, plan.device, plan.kv_dtype)
    memory = PagedMemory(
        BlockPool(num_blocks),
        BLOCK_TOKENS,
        salt=sha256(env.owner.encode()).digest(),
        share_prefixes=not env.deterministic,
        window_tokens=max(windows) if len(windows) == len(layers) else None,
    )
    speculates = env.speculation != "off" and not env.deterministic
    speculation = LaneSpeculation(max_rows=plan.step_rows) if speculates else None
    lane = PagedLane(
        f"{env.owner}/{LANE}",
        model,
        store,
        memory,
        step_budget=env.step_budget or plan.step_tokens,
        max_rows=env.max_rows or plan.step_rows,
        learning=learns,
        speculation=speculation,
        native=None if plan.outside_bytes else native_step(model, store, layers),
        captured=lambda made: captured_steps(made, model, plan, env, spare_page=num_blocks) if records else None,
    )
    return Execution(
        lane=lane, memory=memory, batching=PAGED, close=lane.close, speculation=speculation, captured=lane.captured
    )


def _rows(
    model: Any, config: Any, vocab_size: int, plan: Plan, env: LoadEnvironment, learns: Learning | None
) -> Execution:
    mode = probe(model, config, vocab_size)
    size = measure_state(model, config)
    kept = plan.kv_bytes + plan.state_bytes
    env.ledger.enter(plan.device, env.owner, "state", kept)
    env.ledger.enter(plan.device, env.owner, "workspace", (WORKSPACE_FACTOR - 1) * kept)
    max_rows = env.max_rows or plan.step_rows
    memory = RowMemory(
        mode=mode,
        budget_bytes=kept,
        bytes_per_token=size.per_token,
        bytes_per_sequence=size.per_sequence,
        bytes_per_source_token=size.per_source_token,
        max_sequences=plan.max_sequences or max_rows,
        restart_tokens=longrope_switch(fields_of(config)),
    )
    lane = RowLane(
        name=f"{env.owner}/{LANE}",
        model=model,
        config=config,
        mode=mode,
        sampler=Sampler(),
        max_rows=max_rows,
        step_budget=env.step_budget or plan.step_tokens,
        learning=learns,
    )
    if not mode.stackable:
        batching = ALONE
    elif not mode.ragged:
        batching = ROWS_EQUAL
    else:
        batching = ROWS_RAGGED if mode.padded else ROWS_STATE
    return Execution(lane=lane, memory=memory, batching=batching, close=lambda: None, notes=mode.notes)


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
