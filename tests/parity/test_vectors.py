"""Vectors of sentence models, compared with the library's own networks and the documented formulas of poolings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from torch.nn import functional

import kamado
from tiny_vectors import as_sentence_model, build, tokenizer

TEXTS = ["the cat sat on the mat.", "dog", "the stock market fell far " * 4, "a big red dogs"]


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


def states(model: Any, signs: str, text: str) -> torch.Tensor:
    """(tokens, size) of one text by itself, without padding."""
    ids = tokenizer(signs)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model(input_ids=ids)[0][0]


def pooled(found: torch.Tensor, name: str) -> torch.Tensor:
    """As sentence-transformers documents them."""
    weights = torch.arange(1, len(found) + 1).unsqueeze(-1).float()
    return {
        "cls": found[0],
        "max": found.max(dim=0).values,
        "mean": found.mean(dim=0),
        "mean_sqrt_len": found.sum(dim=0) / len(found) ** 0.5,
        "weightedmean": (found * weights).sum(dim=0) / weights.sum(),
        "lasttoken": found[-1],
    }[name]


def check(model: kamado.Model, expected: list[torch.Tensor], **options: Any) -> None:
    """Alone, several in a request, and several requests at once."""
    wanted = torch.stack(expected).numpy()
    assert numpy.abs(wanted).max() > 0.01
    alone = [model.generate(text, **options).embedding for text in TEXTS]
    crowd = model.generate_many([{"prompt": text, **options} for text in TEXTS * 3])
    numpy.testing.assert_allclose(numpy.stack(alone), wanted, atol=1e-5, rtol=1e-4)
    numpy.testing.assert_allclose(model.generate(TEXTS, **options).embedding, wanted, atol=1e-5, rtol=1e-4)
    numpy.testing.assert_allclose(
        numpy.stack([result.embedding for result in crowd]), numpy.tile(wanted, (3, 1)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        ("bert", "bert"), ("xlm-roberta", "roberta"), ("mpnet", "roberta"), ("distilbert", "bert"),
        ("modernbert", "bert"), ("qwen3", "decoder"), ("deberta-v2", "bert"),
    ],
)  # fmt: skip
def test_bare_networks_pool_by_mean_and_say_so(kind: str, signs: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build(kind, "Model", tmp_path)
    model = runtime.load(tmp_path)
    assert model.tasks == ("feature-extraction", "sentence-similarity") and model.capabilities == ("embedding",)
    check(model, [pooled(states(network, signs, text), "mean") for text in TEXTS])
    (note,) = model.generate("dog").notes
    assert "mean" in note
    assert not model.generate("dog", pooling="mean").notes
    model.unload()


def test_every_pooling_alone_and_joined(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("bert", "Model", tmp_path)
    as_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    model = runtime.load(tmp_path)
    for name in ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"):
        check(model, [pooled(states(network, "bert", text), name) for text in TEXTS], pooling=name)
    both = [torch.cat([pooled(states(network, "bert", text), name) for name in ("cls", "mean")]) for text in TEXTS]
    check(model, both)


def test_a_decoder_is_found_by_its_modules_and_reads_to_its_last_token(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("qwen3", "Model", tmp_path, named="ForCausalLM")
    prompts = {"query": "the capital of ", "document": ""}
    as_sentence_model(
        tmp_path, {"pooling_mode_lasttoken": True}, [("Normalize", {}, {})], settings={"prompts": prompts}
    )
    model = runtime.load(tmp_path)
    assert model.info["pooling"] == "lasttoken" and model.info["prompts"] == prompts

    def expected(before: str) -> list[torch.Tensor]:
        return [functional.normalize(states(network, "decoder", before + text)[-1], dim=0) for text in TEXTS]

    check(model, expected(""))
    check(model, expected(""), prompt_name="document")
    check(model, expected("the capital of "), prompt_name="query")
    check(model, expected("yes "), instruction="yes ")
    cut = [functional.normalize(vector[:8], dim=0) for vector in expected("")]
    check(model, cut, dimensions=8)
    raw = [states(network, "decoder", text)[-1] for text in TEXTS]
    check(model, raw, normalize=False)
    for options, says in (
        ({"prompt_name": "passage"}, "one of query, document"),
        ({"prompt_name": "query", "instruction": "x"}, "not both"),
        ({"dimensions": 33}, "have 32, not 33"),
        ({"voice": "x"}, "takes no voice"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate("dog", **options)


def test_what_was_saved_with_a_head_is_used_without_it(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("bert", "ForMaskedLM", tmp_path)
    as_sentence_model(tmp_path, {"pooling_mode_cls_token": True})
    check(runtime.load(tmp_path), [states(network.bert, "bert", text)[0] for text in TEXTS])


def test_dense_layers_and_norms_behind_the_pooling(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("t5", "EncoderModel", tmp_path)
    weight, bias = torch.randn(12, 32), torch.randn(12)
    dense = {"in_features": 32, "out_features": 12, "bias": True,
             "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    norm = {"norm.weight": torch.rand(12) + 0.5, "norm.bias": torch.randn(12)}
    as_sentence_model(
        tmp_path,
        {"pooling_mode_mean_tokens": True},
        [
            ("Dense", dense, {"linear.weight": weight, "linear.bias": bias}),
            ("LayerNorm", {"dimension": 12}, norm),
            ("Normalize", {}, {}),
        ],
        lengths={"max_seq_length": 12},
    )
    model = runtime.load(tmp_path)
    assert {lane.lane for lane in model.plan.lanes} == {"network", "steps"} and model.info["dimensions"] == 12

    def vector(text: str) -> torch.Tensor:
        ids = tokenizer("decoder")(text, truncation=True, max_length=12, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean = network(input_ids=ids)[0][0].mean(dim=0)
            made = torch.tanh(functional.linear(mean, weight, bias))
            normed = functional.layer_norm(made, (12,), norm["norm.weight"], norm["norm.bias"])
            return functional.normalize(normed, dim=0)

    check(model, [vector(text) for text in TEXTS])
    assert model.generate(TEXTS).notes == (
        "1 of 4 texts were longer than the 12 tokens that the model reads, and were cut",
    )
    with pytest.raises(kamado.ContextOverflow, match="21 tokens") as error:
        model.generate(TEXTS[2], truncate=False)
    assert (error.value.prompt_tokens, error.value.context_tokens) == (21, 12)
    with pytest.raises(kamado.InvalidRequest, match="made for its own"):
        model.generate("dog", pooling="max")


def test_a_prompt_may_be_left_out_of_the_pooling(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("bert", "Model", tmp_path)
    as_sentence_model(
        tmp_path,
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        settings={"prompts": {"query": "the capital of "}, "default_prompt_name": "query"},
    )
    expected = [states(network, "bert", "the capital of " + text)[4:].mean(dim=0) for text in TEXTS]
    check(runtime.load(tmp_path), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "sentence_transformers.models.CNN"}, "a step CNN, which is not known"),
        ({"type": 3}, "names no step"),
        ({"type": "x.Dense", "path": "../other"}, "other"),
        ({"type": "x.Dense", "path": "9_Dense"}, "weights are missing"),
    ],
)
def test_damaged_and_unknown_layouts_are_named(
    change: dict[str, Any], says: str, tmp_path: Path, runtime: kamado.Runtime
) -> None:
    import json

    build("bert", "Model", tmp_path)
    as_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True}, [("Normalize", {}, {})])
    entries = json.loads((tmp_path / "modules.json").read_text())
    entries[2] |= change
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises((kamado.UnsupportedCheckpoint, kamado.UnsafeCheckpoint), match=says):
        runtime.plan(tmp_path)
        runtime.load(tmp_path)


def test_weights_of_a_step_that_are_a_pickle_are_refused(tmp_path: Path, runtime: kamado.Runtime) -> None:
    build("bert", "Model", tmp_path)
    as_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True}, [("Dense", {}, {"linear.weight": torch.ones(1)})])
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(kamado.UnsafeCheckpoint, match=r"2_Dense/pytorch_model\.bin"):
        runtime.load(tmp_path)


def test_the_library_pads_as_we_do(tmp_path: Path, runtime: kamado.Runtime) -> None:
    """What a row's neighbours are changes nothing: 40 texts of all lengths in one request."""
    network = build("modernbert", "Model", tmp_path)
    model = runtime.load(tmp_path)
    texts = [" ".join(["the", "cat", "sat", "far"][i % 4] for i in range(count)) for count in range(1, 41)]
    expected = torch.stack([pooled(states(network, "bert", text), "mean") for text in texts]).numpy()
    numpy.testing.assert_allclose(model.generate(texts).embedding, expected, atol=1e-5, rtol=1e-4)
    assert isinstance(network, transformers.PreTrainedModel)


def test_a_network_larger_than_the_budget_runs_with_weights_outside(tmp_path: Path) -> None:
    network = build("bert", "ForMaskedLM", tmp_path, num_hidden_layers=12)
    as_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True})
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plan = runtime.plan(tmp_path)
        budget = plan.minimum_bytes - plan.weight_bytes // 3
    with kamado.Runtime(device="cpu", memory=budget) as small:
        model = small.load(tmp_path)
        assert model.plan.outside_bytes > 0 and small.stats()["held_bytes"] <= budget
        check(model, [pooled(states(network.bert, "bert", text), "mean") for text in TEXTS])


def test_quantized_weights_give_nearly_the_same(tmp_path: Path, runtime: kamado.Runtime) -> None:
    build("bert", "Model", tmp_path, hidden_size=64, intermediate_size=128)
    as_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True}, [("Normalize", {}, {})])
    whole = runtime.load(tmp_path).generate(TEXTS).embedding
    model = runtime.load(tmp_path, quant="int8-weight-only")
    assert model.plan.quant is not None
    assert ((model.generate(TEXTS).embedding * whole).sum(axis=1) > 0.99).all()


def test_batches_hold_vectors_in_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from typed import typed

    network = build("bert", "Model", tmp_path / "model")
    lines = [{"id": "a", "prompt": "dog"}, {"id": "b", "prompt": ["dog", "cat"], "pooling": "cls"}, {"id": "c", "n": 2}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    run = typed(monkeypatch, capsys)
    run("batch", str(tmp_path / "model"), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"), stdin=b"")
    first, second, third = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    mean = pooled(states(network, "bert", "dog"), "mean").numpy()
    numpy.testing.assert_allclose(first["outputs"][0]["embedding"], mean, atol=1e-5)
    expected = [states(network, "bert", text)[0].numpy() for text in ("dog", "cat")]
    numpy.testing.assert_allclose(second["outputs"][0]["embeddings"], expected, atol=1e-5)
    assert third["status"] == "failed" and "line 3" in third["error"] and "takes no n" in third["error"]


def test_a_list_of_texts_is_given_as_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typed import typed

    folder, out = str(tmp_path / "model"), tmp_path / "v.npy"
    network = build("bert", "Model", tmp_path / "model")
    run = typed(monkeypatch, capsys)
    done = run("run", folder, "--option", 'prompt=["dog", "cat"]', "-o", str(out))
    assert done.status == 0, done.err
    expected = [pooled(states(network, "bert", text), "mean").numpy() for text in ("dog", "cat")]
    numpy.testing.assert_allclose(numpy.load(out), expected, atol=1e-5)
    done = run("run", folder, "a dog", "--option", 'prompt="cat"')
    assert done.status == 2 and "twice" in done.err
