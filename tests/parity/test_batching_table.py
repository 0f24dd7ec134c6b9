"""What `kamado show` says of batching before a model is loaded is what is found out on the loaded model."""

from __future__ import annotations

from pathlib import Path

import pytest

import kamado
import tiny
from kamado_models.language.batching import PAGED, UNKNOWN, batching_of
from kamado_models.language.paged_probe import probe_paged


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_table(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        said = model.info["batching"]
        assert said != UNKNOWN
        assert said == batching_of(model.loaded.module.config.model_type)  # type: ignore[attr-defined]
        assert runtime.stats()["models"][model.owner]["batching"] == said
        module = model.loaded.module  # type: ignore[attr-defined]
        if said == PAGED:
            # Loading trusted the table; here the logits are compared.
            model.loaded.execution.lane.close()  # back to plain attention
            assert probe_paged(module, module.config.get_text_config().vocab_size).reason == ""
