"""Models whose classes are the checkpoint's own code: allowed by name, with the tokens that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import own_code
import tiny
from kamado.checkpoint.inspect import inspect
from kamado_models.language.batching import PAGED, ROWS_EQUAL, ROWS_RAGGED, UNKNOWN

NUM_NEW = 20
LENGTHS = (33, 7, 60, 1, 20, 20, 45)
BATCHING = {"twisted": PAGED, "own": ROWS_RAGGED, "unmasked": ROWS_EQUAL}
pytestmark = pytest.mark.usefixtures("module_cache")


@dataclass(frozen=True, slots=True)
class Built:
    kind: str
    folder: Path
    oracle: tiny.Oracle
    marker: Path
    """Written by the code as soon as it is imported."""


@pytest.fixture(scope="module", params=list(BATCHING))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Built:
    root = tmp_path_factory.mktemp(request.param)
    folder = own_code.build(request.param, root / "model", root / "marker")
    return Built(request.param, folder, tiny.Oracle(folder, own_code=True), root / "marker")


@pytest.fixture(scope="module")
def model(built: Built) -> Iterator[kamado.Model]:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        yield runtime.load(built.folder, dtype="float32", kv_tokens=512, step_budget=24, allow_code=built.folder)


def prompt(length: int, start: int = 0) -> list[int]:
    return [8 + (37 * (i + start) + (i * i) % 23) % 256 for i in range(length)]


def request(tokens: list[int]) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}


def test_tokens_are_those_of_transformers_alone_and_together(built: Built, model: kamado.Model) -> None:
    prompts = [prompt(length, start) for start, length in enumerate(LENGTHS)]
    wanted = [built.oracle.greedy(tokens, NUM_NEW) for tokens in prompts]
    # The comparison would be worth little if the tiny model said the same whatever it is asked.
    assert len({token for answer in wanted for token in answer}) > 10
    assert [list(model.generate(**request(tokens)).tokens) for tokens in prompts] == wanted
    results = model.generate_many([request(tokens) for tokens in prompts])
    assert [list(result.tokens) for result in results] == wanted
    assert model.runtime.stats()["splits"] == 0


def test_the_own_code_is_what_ran(built: Built, model: kamado.Model) -> None:
    module: Any = model.loaded.module  # type: ignore[attr-defined]
    assert type(module).__module__.startswith("transformers_modules.")
    if built.kind == "twisted":
        plain = torch.nn.functional.silu
        layer = module.model.layers[0].mlp
        assert not torch.allclose(layer.act_fn(torch.ones(1)), plain(torch.ones(1)))


def test_how_it_runs_is_found_out(built: Built, model: kamado.Model) -> None:
    usage = model.runtime.stats()["models"][model.owner]
    assert usage["batching"] == BATCHING[built.kind]
    assert model.info["batching"] == UNKNOWN and UNKNOWN in model.plan.notes


def test_the_plan_is_measured_on_the_class(built: Built, model: kamado.Model) -> None:
    plan, entries = model.plan, model.runtime.ledger.snapshot()["cpu"][model.owner]
    # Two key-value heads of 8 in each of 3 layers: only its own class knows that.
    assert plan.kv_bytes_per_token == 3 * 2 * 16 * 4
    assert (plan.context_tokens, plan.state_bytes_per_sequence) == (256, 0)
    assert plan.weight_bytes == pytest.approx(entries["weights"], rel=0.01)
    assert entries.get("kv", 0) + entries.get("state", 0) == plan.kv_bytes
    assert model.runtime.plan(built.folder, kv_tokens=512, allow_code=built.folder).kv_bytes == plan.kv_bytes


def test_the_recipe_says_that_code_was_allowed_and_which(built: Built, model: kamado.Model) -> None:
    recipe = model.generate(**request([9, 10])).recipe["model"]
    assert model.plan.allow_code == str(built.folder)
    assert recipe["allow_code"] == recipe["reference"] == f"./{built.folder.name}", "a recipe has no paths"
    assert {path.name for path in built.folder.glob("*.py")} <= recipe["files"].keys()


@pytest.mark.parametrize("allow_code", [None, "other/name", "model", "/"])
def test_without_its_name_nothing_of_it_is_run(built: Built, allow_code: str | None) -> None:
    built.marker.unlink(missing_ok=True)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        inspected = runtime.inspect(built.folder)
        assert inspected.metadata["wants_code"]
        tried: list[Callable[..., Any]] = [runtime.load, runtime.plan]
        for attempt in tried:
            with pytest.raises(kamado.UnsafeCheckpoint, match="--allow-code"):
                attempt(built.folder, allow_code=allow_code)
        assert runtime.ledger.held() == 0
    assert not built.marker.exists()


@pytest.fixture
def folder(tmp_path: Path, module_cache: Path) -> Path:
    """A whole checkpoint to break."""
    return own_code.build("own", tmp_path / "model", tmp_path / "marker")


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, error: type[kamado.KamadoError], match: str) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        with pytest.raises(error, match=match) as caught:
            runtime.load(folder, allow_code=folder)
        assert str(caught.value).count("\n") <= 1
        assert runtime.ledger.held() == 0


def test_code_of_another_repository_stays_refused(folder: Path, tmp_path: Path) -> None:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    foreign = f"other/repo--{auto_map['AutoModelForCausalLM']}"
    change(folder, auto_map=auto_map | {"AutoModelForCausalLM": foreign})
    refused(folder, kamado.UnsafeCheckpoint, "another repository")
    assert not (tmp_path / "marker").exists(), "its own half was run"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("modeling_own.py", "import a_package_that_nobody_has\n", "a_package_that_nobody_has"),
        ("modeling_own.py", "raise OSError('no luck')\n", "no luck"),
        ("modeling_own.py", "def broken(:\n", "SyntaxError"),
        ("modeling_own.py", "from .absent import x\n", "absent"),
        ("modeling_own.py", "OwnForCausalLM = 7\n", "PreTrainedModel"),
        ("configuration_own.py", "class OwnConfig: pass\n", "PreTrainedConfig"),
        ("configuration_own.py", "class Other: pass\n", "OwnConfig"),
    ],
)
def test_code_that_does_not_work_is_explained(name: str, text: str, message: str, folder: Path) -> None:
    (folder / name).write_text(text)
    refused(folder, kamado.UnsupportedCheckpoint, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"past_key_values=cache)": ")", "cache = DynamicCache() if": "cache = DynamicCache() if True or"},
            "keeps no state",
        ),
        ({"x = self.embed(input_ids)": "raise LookupError('not today')\n        x = 1"}, "not today"),
        ({"self.embed = nn": "raise BufferError('in vain')\n        self.embed = nn"}, "in vain"),
        ({"self.norm = nn.LayerNorm": "self.normal = nn.LayerNorm"}, "no attribute 'norm'"),
        ({"2 * config.width, config.width)": "2 * config.width, config.width, bias=False)"}, "no place for"),
    ],
)
def test_a_class_that_cannot_be_used_is_explained(changes: dict[str, str], message: str, folder: Path) -> None:
    path = folder / "modeling_own.py"
    text = path.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    refused(folder, kamado.UnsupportedCheckpoint, message)


def test_a_forward_that_looks_at_values_is_planned_by_its_configuration(folder: Path) -> None:
    path = folder / "modeling_own.py"
    looking = "if (input_ids < 0).any().item():\n            raise ValueError\n        x = self.embed(input_ids)"
    path.write_text(path.read_text().replace("x = self.embed(input_ids)", looking))
    change(folder, num_attention_heads=4)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        # Nothing tells that keys are shared by two heads, so it counts twice as much.
        assert runtime.plan(folder, allow_code=folder).kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
        model = runtime.load(folder, kv_tokens=512, allow_code=folder)
        wanted = tiny.Oracle(folder, own_code=True).greedy(prompt(9), NUM_NEW)
        assert list(model.generate(**request(prompt(9))).tokens) == wanted


def test_a_tokenizer_of_its_own_is_not_used(folder: Path) -> None:
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        assert runtime.load(folder, allow_code=folder).generate("abc", max_tokens=3, chat=False).tokens
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    refused(folder, kamado.UnsupportedCheckpoint, "tokenizer is code of its own")


def test_a_checkpoint_with_code_for_its_tokenizer_alone_runs_as_the_library_has_it(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "model")
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    (folder / "tokenization_own.py").write_text("raise AssertionError('this was run')\n")
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        with pytest.raises(kamado.UnsafeCheckpoint, match="tokenizer_config"):
            runtime.load(folder)
        model = runtime.load(folder, kv_tokens=512, allow_code=folder)
        assert runtime.stats()["models"][model.owner]["batching"] == PAGED
        wanted = tiny.greedy(folder, prompt(9), NUM_NEW)
        assert list(model.generate(**request(prompt(9))).tokens) == wanted


def test_a_permission_that_is_not_needed_changes_nothing(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "model")
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512, allow_code="some/name")
        assert model.plan.allow_code is None and model.plan.notes == (PAGED,)
        assert "allow_code" not in model.generate(**request([9])).recipe["model"]


def test_names_that_only_its_class_knows_can_be_shown_and_run(folder: Path) -> None:
    """Nothing in config.json says how many layers there are: the class's defaults do."""
    path = folder / "config.json"
    kept = ("architectures", "model_type", "auto_map", "custom_gain")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key in kept}))
    from kamado.families import find

    checkpoint = inspect(folder)
    said = find(checkpoint).describe(checkpoint)
    assert (said["architecture"], said["batching"]) == ("OwnForCausalLM", UNKNOWN)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512, allow_code=folder)
        wanted = tiny.Oracle(folder, own_code=True).greedy(prompt(9), NUM_NEW)
        assert list(model.generate(**request(prompt(9))).tokens) == wanted
