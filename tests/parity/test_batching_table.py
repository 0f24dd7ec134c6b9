"""What `kamado show` and plans say of batching before a model is loaded is what is found out on the loaded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado_models.language.batching import PAGED, ROWS_EQUAL, ROWS_RAGGED, UNKNOWN, cuts_prompts
from kamado_models.language.paged_probe import probe_paged
from kamado_models.language.shape import text_shape

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}
LONG = {"rope_theta": 10_000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3}
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers that read others' keys and values": ("gemma4", SHARED, ROWS_RAGGED),
    "a hybrid type with attention alone": ("granitemoehybrid", {"layer_types": ["attention"] * 3}, PAGED),
    "dynamic positions, else over pages": ("llama", DYNAMIC, ROWS_EQUAL),
    "dynamic positions, else by rows": ("falcon", DYNAMIC, ROWS_EQUAL),
    "LongRoPE": ("phi3", {"rope_parameters": {"rope_type": "longrope", **LONG}}, ROWS_EQUAL),
}


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_table(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        check(runtime, model)


@pytest.mark.parametrize("name", VARIANTS)
def test_configurations_that_are_not_as_most_of_their_type(name: str, tmp_path: Path) -> None:
    architecture, changes, how = VARIANTS[name]
    folder = tiny.build(architecture, tmp_path / "model", **changes)
    prompts = [[20 + 7 * i % 200 for i in range(n)] for n in (40, 23, 9)]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        assert model.info["batching"] == how
        requests = [
            {"prompt_tokens": prompt, "max_tokens": 12, "temperature": 0.0, "ignore_eos": True} for prompt in prompts
        ]
        oracle = tiny.Oracle(folder)
        assert [list(result.tokens) for result in model.generate_many(requests)] == [
            oracle.greedy(prompt, 12) for prompt in prompts
        ]
        check(runtime, model)


def test_early_files_call_longrope_otherwise(tmp_path: Path) -> None:
    folder = tiny.build("phi3", tmp_path / "phi3")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in [key for key in config if key.startswith("rope_")]:
        del config[key]
    early = {**LONG, "type": "su", "original_max_position_embeddings": 64}
    path.write_text(json.dumps(config | {"rope_scaling": early}))
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        assert model.info["batching"] == ROWS_EQUAL
        check(runtime, model)


def check(runtime: kamado.Runtime, model: kamado.Model) -> None:
    """What runs is what `show` and the plan say."""
    said = model.info["batching"]
    assert said != UNKNOWN
    assert runtime.stats()["models"][model.owner]["batching"] == said
    assert model.plan.notes[0] == said
    module = model.loaded.module  # type: ignore[attr-defined]
    cuts = cuts_prompts(text_shape(module.config.to_dict()))
    if not module.config.is_encoder_decoder:  # prompts go to the encoder
        assert model.loaded.execution.memory.chunked == cuts  # type: ignore[attr-defined]
    assert len(model.plan.notes) == (1 if cuts and not module.config.is_encoder_decoder else 2)
    if said == PAGED:
        # Loading trusted the table; here the logits are compared.
        model.loaded.execution.lane.close()  # back to plain attention
        assert probe_paged(module, module.config.get_text_config().vocab_size).reason == ""
