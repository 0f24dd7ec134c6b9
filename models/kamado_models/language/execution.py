"""How a loaded language model is run: over pages, or by rows."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from kamado.contracts import LoadEnvironment
from kamado.errors import InvalidRequest
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.memory.learned import Learning
from kamado.memory.plan import Plan
from kamado.sampling.sampler import Sampler
from kamado.speculation.costs import LaneSpeculation

from .batching import ALONE, PAGED, ROWS_EQUAL, ROWS_RAGGED, ROWS_STATE, UNKNOWN
from .decoder import Decoder
from .learning import LANE
from .media.decoder import inner_decoder
from .media.table import ENCODER
from .media.task import EncoderLane
from .model import Execution
from .native_probe import native_verdict
from .native_step import NativeStep, recognised
from .needs import BLOCK_TOKENS
from .paged import PagedLane
from .pages import LayerShape, PageStore, page_store
from .positions import fields_of, longrope_switch, shifting_positions
from .prepared import Facts
from .recording import captured_steps, may_record
from .rows_memory import WORKSPACE_FACTOR, RowMemory


def choose_execution(
    model: Any, plan: Plan, env: LoadEnvironment, batching: str, facts: Facts, learns: Learning | None = None
) -> Execution:
    """The lane and memory for what `batching_of` said: pages or rows. What it does not know runs over pages where its
    attention allows. `facts`: what is known of the model; what is found out now is noted there. `learns`: what is told
    the peaks of its forwards."""
    layers = _pageable_layers(model, batching, facts)
    if layers is not None:
        return _paged(model, layers, plan, env, facts, learns, is_known=batching == PAGED)
    if plan.kv_dtype != "auto":
        raise InvalidRequest(f"{plan.reference} cannot run over pages here, so its KV cache cannot be {plan.kv_dtype}")
    return _rows(model, plan, env, learns)


def _pageable_layers(model: Any, batching: str, facts: Facts) -> tuple[LayerShape, ...] | None:
    """What its layers keep; None for a model that does not run over pages."""
    if facts.paged is None:
        facts.paged = None, ""
        config = model.config
        pageable = not config.is_encoder_decoder and shifting_positions(fields_of(config)) is None
        if batching == PAGED or (batching == UNKNOWN and pageable):
            from .paged_probe import probe_paged

            verdict = probe_paged(model, vocab_size(model), known=batching == PAGED)
            facts.paged = verdict.layers, verdict.reason
    return facts.paged[0]


def vocab_size(model: Any) -> int:
    """As the configuration says it; classes of a checkpoint's own may call it otherwise."""
    if isinstance(model, Decoder):
        return model.sizes.vocab
    stated = stated_vocab_size(model.config)
    return int(model.get_input_embeddings().weight.shape[0]) if stated is None else stated


def stated_vocab_size(config: Any) -> int | None:
    """As transformers' configuration says it."""
    stated = getattr(config.get_text_config(), "vocab_size", None)
    return None if stated is None else int(stated)


def _paged(
    model: Any,
    layers: tuple[LayerShape, ...],
    plan: Plan,
    env: LoadEnvironment,
    facts: Facts,
    learns: Learning | None,
    *,
    is_known: bool,
) -> Execution:
    """`is_known`: the model's type is one of those that the tests compare."""
    block_bytes = BLOCK_TOKENS * sum(layer.bytes_per_token(model.dtype, plan.kv_dtype) for layer in layers)
    num_blocks = max(plan.kv_bytes // block_bytes, 1)
    env.ledger.enter(plan.device, env.owner, "kv", num_blocks * block_bytes)
    windows = [layer.window for layer in layers if layer.window is not None]
    records = is_known and inner_decoder(model) is None and may_record(plan, env, spare_bytes=block_bytes)
    store = page_store(layers, num_blocks + records, BLOCK_TOKENS, model.dtype, plan.device, plan.kv_dtype)
    memory = PagedMemory(
        BlockPool(num_blocks),
        BLOCK_TOKENS,
        salt=sha256(env.owner.encode()).digest(),
        share_prefixes=not env.deterministic,
        window_tokens=max(windows) if len(windows) == len(layers) else None,
    )
    weights = plan.held_weight_bytes
    speculation = LaneSpeculation(max_rows=plan.step_rows, weight_bytes=weights) if not env.deterministic else None
    native = None if plan.outside_bytes else _native(model, store, layers, facts)
    lane = PagedLane(
        f"{env.owner}/{LANE}",
        model,
        store,
        memory,
        step_budget=env.step_budget or plan.step_tokens,
        max_rows=env.max_rows or plan.step_rows,
        learning=learns,
        speculation=speculation,
        native=native,
        captured=lambda made: captured_steps(made, model, plan, env, spare_page=num_blocks) if records else None,
    )
    encoder = None
    if lane.see is not None:
        name = f"{env.owner}/{ENCODER}"
        encoder = EncoderLane(name, lane.see, ledger=env.ledger, device=plan.device, owner=env.owner)
    return Execution(
        lane=lane,
        memory=memory,
        batching=PAGED,
        close=lane.close,
        speculation=speculation,
        guesses=env.speculation != "off",
        captured=lane.captured,
        ahead=lane.ahead,
        encoder=encoder,
        step="native" if native is not None else "recorded" if lane.captured is not None else "modules",
    )


def _native(model: Any, store: PageStore, layers: tuple[LayerShape, ...], facts: Facts) -> NativeStep | None:
    """Its native forward, judged with pages in the compute precision."""
    if facts.native is not None:
        return recognised(model, store) if facts.native else None
    verdict = native_verdict(model, store, layers, stands_in=facts.wants_sizes)
    facts.native = verdict.step is not None
    facts.sizes = facts.sizes or verdict.sizes
    return verdict.step


def _rows(model: Any, plan: Plan, env: LoadEnvironment, learns: Learning | None) -> Execution:
    from .rows import RowLane, measure_state, probe, shrink

    config = model.config
    mode = probe(model, config, vocab_size(model))
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
        shrink=shrink,
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
