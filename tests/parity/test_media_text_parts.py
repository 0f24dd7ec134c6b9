"""Models that see and whose layers keep recurrent state: their language model runs, with text alone, as transformers'
`generate` of the whole model does; what shows something is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kamado
from kamado.errors import InvalidRequest
from kamado_models.language.batching import ROWS_RAGGED
from kamado_models.language.media.table import TEXT_PARTS
from tiny_media import hybrid, picture

NUM_NEW = 10
HOW = {"max_tokens": NUM_NEW, "temperature": 0.0, "ignore_eos": True}
PROMPTS = [[8 + (31 * length + at) % 200 for at in range(length)] for length in (7, 30, 19)]


def test_every_known_type_is_here() -> None:
    assert set(hybrid.KINDS) == set(TEXT_PARTS)


@pytest.mark.parametrize("name", list(hybrid.KINDS))
def test_its_language_model_is_run(name: str, tmp_path: Path) -> None:
    import transformers

    folder = hybrid.KINDS[name](tmp_path)
    config = json.loads((folder / "config.json").read_text())
    whole = getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32).eval()

    def greedy(tokens: list[int]) -> list[int]:
        ids = torch.tensor([tokens])
        how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
        with torch.inference_mode():
            out = whole.generate(ids, **how, max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW)
        return list(out[0, -NUM_NEW:].tolist())

    wanted = [greedy(tokens) for tokens in PROMPTS]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, dtype="float32", offline=True)
        assert model.usage()["batching"] == ROWS_RAGGED and ROWS_RAGGED in model.plan.notes
        assert model.info["reads"] == ["text"]
        stored = {key: entry.nbytes for key, entry in model.checkpoint.tensors.items() if "vis" not in key}
        assert model.plan.weight_bytes <= sum(stored.values()), "what sees is not loaded"
        jobs = [model.submit(prompt_tokens=tokens, **HOW) for tokens in PROMPTS]
        assert [list(job.result().tokens) for job in jobs] == wanted
        with pytest.raises(InvalidRequest, match="takes text alone, and no image"):
            model.generate("what?", image=picture(0))
