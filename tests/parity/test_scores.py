"""Masked language models, classifiers and rerankers, compared with the library's own pipelines and networks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

import kamado
from tiny_vectors import as_sentence_model, build, tokenizer


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


MASKED = [
    ("bert", "bert"), ("roberta", "roberta"), ("xlm-roberta", "roberta"), ("mpnet", "roberta"), ("distilbert", "bert"),
    ("modernbert", "bert"), ("electra", "bert"), ("deberta-v2", "bert"), ("albert", "bert"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "signs"), MASKED)
def test_gaps_are_filled_as_by_the_pipeline(kind: str, signs: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build(kind, "ForMaskedLM", tmp_path)
    words = tokenizer(signs)
    pipeline = transformers.pipeline("fill-mask", model=network, tokenizer=words)
    model = runtime.load(tmp_path)
    assert model.tasks == ("fill-mask",) and model.capabilities == ("scores",)
    text = f"paris is the {words.mask_token} of france."
    result = model.generate(text, top_k=4)
    expected = pipeline(text, top_k=4)
    assert [item.details["token"] for item in result.scores] == [each["token"] for each in expected]
    numpy.testing.assert_allclose(
        [item.score for item in result.scores], [each["score"] for each in expected], atol=1e-5
    )
    best = expected[0]["token_str"]
    assert result.text == (
        f"paris is the{best[2:]} of france." if best.startswith("##") else f"paris is the {best} of france."
    )

    one = model.generate("the [MASK] sat on <mask> mat.", targets=["dog", "cat"])
    expected = pipeline(f"the {words.mask_token} sat on {words.mask_token} mat.", targets=["dog", "cat"])
    for gap in (0, 1):
        ours = [item for item in one.scores if item.index == gap]
        assert [item.value for item in ours] == [each["token_str"] for each in expected[gap]]
        numpy.testing.assert_allclose(
            [item.score for item in ours], [each["score"] for each in expected[gap]], atol=1e-5
        )
    crowd = model.generate_many([{"prompt": text, "top_k": 4}, {"prompt": "a dog [MASK]."}] * 4)
    numpy.testing.assert_allclose(
        [item.score for item in crowd[6].scores], [item.score for item in result.scores], atol=1e-5
    )
    model.unload()


def test_a_text_is_scored_by_hiding_one_token_after_the_other(tmp_path: Path, runtime: kamado.Runtime) -> None:
    network, words = build("bert", "ForMaskedLM", tmp_path), tokenizer("bert")
    texts = ["the cat sat on the mat.", "market dog fell", "a"]

    def likelihood(text: str) -> float:
        ids = words(text, return_tensors="pt")["input_ids"]
        total = 0.0
        for place in range(1, ids.shape[1] - 1):
            hidden = ids.clone()
            hidden[0, place] = words.mask_token_id
            with torch.inference_mode():
                total += float(network(input_ids=hidden).logits[0, place].log_softmax(-1)[ids[0, place]])
        return total

    model = runtime.load(tmp_path)
    found = model.generate(texts, task="score").scores
    by_index = sorted(found, key=lambda item: item.index or 0)
    numpy.testing.assert_allclose([item.score for item in by_index], [likelihood(text) for text in texts], rtol=1e-4)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert by_index[0].details["tokens"] == 7
    assert math.isclose(by_index[0].details["perplexity"], math.exp(-by_index[0].score / 7), rel_tol=1e-6)
    alone = model.generate(texts[0], task="score").scores[0]
    assert alone.index is None and math.isclose(alone.score, by_index[0].score, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "no gap"}, r"write \[MASK\]"),
        ({"prompt": ["a [MASK]", "b [MASK]"]}, "one text at a time"),
        ({"prompt": "a [MASK]", "targets": ["nonsense"]}, "is not one token"),
        ({"prompt": "a", "task": "score", "top_k": 3}, "top_k is for task=fill-mask"),
        ({"prompt": "a [MASK]", "task": "other"}, "task must be one of"),
        ({"prompt": "the " * 80 + "[MASK]"}, "83 tokens"),
        ({"prompt": "a [MASK]", "temperature": 1}, "takes no temperature"),
    ],
)
def test_bad_requests_to_masked_models(
    options: dict[str, Any], says: str, tmp_path: Path, runtime: kamado.Runtime
) -> None:
    build("bert", "ForMaskedLM", tmp_path)
    with pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(tmp_path).generate(**options)


DOCUMENTS = ["paris is the capital of france.", "the dog", "stock market fell far " * 3, "a cat sat on the mat"]


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        ("bert", "bert"),
        ("xlm-roberta", "roberta"),
        ("modernbert", "bert"),
        ("distilbert", "bert"),
        ("qwen3", "decoder"),
    ],
)
def test_documents_are_ordered_by_a_cross_encoder(
    kind: str, signs: str, tmp_path: Path, runtime: kamado.Runtime
) -> None:
    network, words = build(kind, "ForSequenceClassification", tmp_path, num_labels=1), tokenizer(signs)
    model = runtime.load(tmp_path)
    assert model.tasks == ("text-ranking", "text-classification")

    def logit(document: str) -> float:
        given = words("the capital", document, return_tensors="pt")
        if kind not in ("bert",):
            given.pop("token_type_ids", None)
        with torch.inference_mode():
            return float(network(**given).logits[0, 0])

    logits = [logit(document) for document in DOCUMENTS]
    order = sorted(range(4), key=lambda number: -logits[number])
    found = model.generate("the capital", documents=DOCUMENTS, activation="none").scores
    assert [item.index for item in found] == order and [item.value for item in found] == [DOCUMENTS[i] for i in order]
    numpy.testing.assert_allclose([item.score for item in found], [logits[i] for i in order], atol=1e-4)
    best = model.generate(query="the capital", documents=DOCUMENTS, top_n=2).scores
    numpy.testing.assert_allclose(
        [item.score for item in best], [1 / (1 + math.exp(-logits[i])) for i in order[:2]], atol=1e-5
    )
    crowd = model.generate_many([{"prompt": "the capital", "documents": [each]} for each in DOCUMENTS * 2])
    numpy.testing.assert_allclose([r.scores[0].score for r in crowd[:4]],
                                  [1 / (1 + math.exp(-each)) for each in logits], atol=1e-5)  # fmt: skip
    model.unload()


def test_the_function_behind_a_cross_encoder_is_the_one_it_names(tmp_path: Path, runtime: kamado.Runtime) -> None:
    build("bert", "ForSequenceClassification", tmp_path, num_labels=1,
          sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})  # fmt: skip
    model = runtime.load(tmp_path)
    raw = model.generate("the cat", documents=DOCUMENTS).scores
    assert raw == model.generate("the cat", documents=DOCUMENTS, activation="none").scores
    for options, says in (
        ({"prompt": ["a", "b"], "documents": ["c"]}, "for one query"),
        ({"prompt": "a", "top_n": 3}, "give documents"),
        ({"prompt": "a", "activation": "softmax"}, "has no softmax"),
        ({"prompt": "a", "top_k": 3}, "takes no top_k"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(**options)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_texts_are_classified_as_by_the_pipeline(problem: str | None, tmp_path: Path, runtime: kamado.Runtime) -> None:
    named = {0: "good", 1: "bad", 2: "odd"}
    network = build("bert", "ForSequenceClassification", tmp_path, id2label=named, problem_type=problem)
    pipeline = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer("bert"), top_k=None)
    model = runtime.load(tmp_path)
    assert model.tasks == ("text-classification",) and model.info["labels"] == ["good", "bad", "odd"]
    found = model.generate(DOCUMENTS).scores
    expected = [pipeline(document)[0] for document in DOCUMENTS]  # a list would set an environment variable
    assert [(item.index, item.value) for item in found] == [
        (number, each["label"]) for number, row in enumerate(expected) for each in row
    ]
    numpy.testing.assert_allclose(
        [item.score for item in found], [each["score"] for row in expected for each in row], atol=1e-5
    )
    one = model.generate("the cat", text_pair="a dog", top_k=1).scores
    (wanted,) = pipeline({"text": "the cat", "text_pair": "a dog"})[:1]
    assert one[0].value == wanted["label"] and one[0].index is None and len(one) == 1
    assert math.isclose(one[0].score, wanted["score"], abs_tol=1e-5)
    with pytest.raises(kamado.InvalidRequest, match="text_pair has 1 texts, and prompt 2"):
        model.generate(["a", "b"], text_pair="c")


TEMPLATE = (
    "{%- set how = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('a') -%}"
    "{{ how }} {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} . "
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }} is"
)


@pytest.mark.parametrize("no", [12, None])
def test_a_language_model_reranks_by_yes_and_no(no: int | None, tmp_path: Path, runtime: kamado.Runtime) -> None:
    network = build("qwen3", "ForCausalLM", tmp_path, template=TEMPLATE)
    modules = [("", "Transformer"), ("1_LogitScore", "cross_encoder.modules.logit_score.LogitScore")]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in modules])
    )
    (tmp_path / "1_LogitScore").mkdir()
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps({"true_token_id": 11, "false_token_id": no}))
    model = runtime.load(tmp_path)
    assert model.tasks == ("text-ranking",)

    def score(document: str, how: str) -> float:
        text = f"{how} the capital . {document} is"
        ids = tokenizer("decoder")(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[0, -1]
        return float(logits[11] - (0 if no is None else logits[no]))

    for options, how in (({}, "a"), ({"instruction": "big"}, "big")):
        found = model.generate("the capital", documents=DOCUMENTS, activation="none", **options).scores
        wanted = [score(document, how) for document in DOCUMENTS]
        assert [item.index for item in found] == sorted(range(4), key=lambda number: -wanted[number])
        numpy.testing.assert_allclose([item.score for item in found], sorted(wanted, reverse=True), atol=1e-4)
    assert 0 < model.generate("the capital", documents=DOCUMENTS[:1]).scores[0].score < 1
    with pytest.raises(kamado.InvalidRequest, match="give documents"):
        model.generate("the capital")


def test_other_checkpoints_are_left_to_other_families(tmp_path: Path) -> None:
    from kamado_models.vectors.family import FAMILY

    build("qwen3", "ForCausalLM", tmp_path)
    with kamado.Runtime(device="cpu") as runtime:
        assert not FAMILY.claims(runtime.inspect(tmp_path))
    as_sentence_model(tmp_path, {"pooling_mode_lasttoken": True})
    with kamado.Runtime(device="cpu") as runtime:
        assert FAMILY.claims(runtime.inspect(tmp_path))
