"""Language models that rerank by yes and no: how they are told, the row they make, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import bfloat16

from openbei.engine.chat import Rendered
from openbei.engine.pairs import PairTexts
from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.model.spec import pack
from openbei.weights.checkpoint import PairTemplate
from openbei.weights.load import LoadOptions, load
from tests import families, rerankers
from tests.families import change_json, write_json
from tests.model import oracles
from tests.rerankers import NO, PLAIN_TEMPLATE, TEMPLATE, YES

IDENTITY = "torch.nn.modules.linear.Identity"
LENGTHS = (3, 17, 1, 9, 30, 2)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The model as a plain folder whose name says nothing."""
    return rerankers.save(tmp_path / "model", rerankers.language_model())


@pytest.fixture
def published(plain: Path) -> Path:
    return rerankers.as_cross_encoder(plain)


@pytest.mark.parametrize("backend", oracles.BACKENDS)
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("qwen3", False), ("qwen2", False), ("gemma3", True)])
def test_the_score_is_yes_less_no_after_the_last_token(family: str, tied: bool, backend: str, tmp_path: Path) -> None:
    judge = rerankers.language_model(family, tied)
    model = load(str(rerankers.as_cross_encoder(rerankers.save(tmp_path, judge)))).model
    ids, _ = oracles.sequences(model, LENGTHS)
    assert (model.num_labels, model.pooling) == (1, "last_token")
    wanted = np.array(rerankers.verdicts(judge, ids), np.float32)[:, None]
    assert oracles.error(oracles.labels_of(backend, model)(pack(model.spec, ids)), wanted) <= 1e-4


def _by_module(folder: Path) -> Path:
    return rerankers.as_cross_encoder(folder)


def _by_name(folder: Path) -> Path:
    return folder.rename(folder.parent / "Qwen3-Reranker-0.6B")


def _by_former_name(folder: Path) -> Path:
    change_json(folder / "config.json", _name_or_path="Qwen/Qwen3-Reranker-4B")
    return folder


def _by_tokens(folder: Path) -> Path:
    change_json(folder / "config.json", classifier_from_token=["no", "yes"], method="from_2_way_softmax")
    return folder


def _by_overrides(folder: Path) -> Path:
    """As vLLM's users add them."""
    change_json(
        folder / "config.json",
        architectures=["Qwen3ForSequenceClassification"],
        classifier_from_token=["no", "yes"],
        is_original_qwen3_reranker=True,
    )
    return folder


@pytest.mark.parametrize("told", [_by_module, _by_name, _by_former_name, _by_tokens, _by_overrides])
def test_every_way_of_telling_it_gives_one_reranker(told: Callable[[Path], Path], plain: Path) -> None:
    words = load_file(plain / "model.safetensors")["model.embed_tokens.weight"].numpy()
    checkpoint = load(str(told(plain)))
    assert checkpoint.model.head is not None
    (layer,) = checkpoint.model.head.layers
    np.testing.assert_array_equal(np.asarray(layer.linear.weight, np.float32), words[[YES]] - words[[NO]])
    assert checkpoint.labels is not None
    assert (checkpoint.labels.reranker, checkpoint.labels.activation) == (True, "sigmoid")
    assert checkpoint.text.pair_template is not None
    assert checkpoint.text.pair_template.source == TEMPLATE


def test_a_row_of_sixteen_bits_is_subtracted_in_float32(tmp_path: Path) -> None:
    judge = rerankers.language_model(tied=False).to(bfloat16)
    folder = rerankers.as_cross_encoder(rerankers.save(tmp_path, judge))
    rows = judge.lm_head.weight.detach().float().numpy()
    model = load(str(folder)).model
    assert model.head is not None
    np.testing.assert_array_equal(np.asarray(model.head.layers[0].linear.weight, np.float32), rows[[YES]] - rows[[NO]])


def test_a_converted_checkpoint_keeps_its_own_row(plain: Path) -> None:
    """Qwen3-Reranker-0.6B-seq-cls: the same row under its own name, and the same prompt."""
    tensors = load_file(plain / "model.safetensors")
    save_file({**tensors, "score.weight": tensors["model.embed_tokens.weight"][[5]]}, plain / "model.safetensors")
    change_json(plain / "config.json", architectures=["Qwen3ForSequenceClassification"])
    folder = plain.rename(plain.parent / "qwen3-reranker-0.6b-seq-cls")
    for keys in ({}, {"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}):
        change_json(folder / "config.json", **keys)
        checkpoint = load(str(folder))
        assert checkpoint.model.head is not None
        np.testing.assert_array_equal(
            checkpoint.model.head.layers[0].linear.weight, tensors["model.embed_tokens.weight"][[5]]
        )
        assert checkpoint.labels is not None
        assert (checkpoint.labels.reranker, checkpoint.labels.activation) == (True, "sigmoid")
        assert checkpoint.text.pair_template == PairTemplate(TEMPLATE)


def test_a_verdict_of_one_token_scores_as_the_files_say(plain: Path) -> None:
    """zerank-2: true_token_id alone, and the number as it is."""
    folder = rerankers.as_cross_encoder(plain, no=None)
    words = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].numpy()
    checkpoint = load(str(folder))
    assert checkpoint.model.head is not None
    np.testing.assert_array_equal(checkpoint.model.head.layers[0].linear.weight, words[[YES]])
    assert checkpoint.labels is not None
    assert (checkpoint.labels.reranker, checkpoint.labels.activation) == (True, "identity")
    change_json(folder / "config_sentence_transformers.json", activation_fn=...)
    labels = load(str(folder)).labels
    assert labels is not None
    assert labels.activation == "sigmoid"


def test_a_verdict_of_both_is_a_probability_whatever_the_files_declare(published: Path) -> None:
    """Qwen's files declare Identity; the authors' own score is softmax over (no, yes)."""
    declared = json.loads((published / "config_sentence_transformers.json").read_text())["activation_fn"]
    labels = load(str(published)).labels
    assert labels is not None
    assert (declared, labels.activation) == (IDENTITY, "sigmoid")


def test_a_language_model_that_says_nothing_of_reranking_is_no_reranker(plain: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"has no modules\.json, so its pooling is unknown"):
        load(str(plain))


def test_a_reranker_by_name_alone_is_refused(plain: Path) -> None:
    """mxbai-rerank-v2 (0 and 1) and bge-reranker-v2-gemma (Yes): their prompts stand in their authors' packages."""
    folder = plain.rename(plain.parent / "mxbai-rerank-base-v2")
    with pytest.raises(UnsupportedModel, match="nothing in its files says by which tokens it reranks"):
        load(str(folder))


def test_whoever_asks_for_a_pooling_gets_an_embedder(plain: Path) -> None:
    checkpoint = load(str(_by_name(plain)), LoadOptions(pooling="last_token"))
    assert (checkpoint.labels, checkpoint.text.pair_template) == (None, None)


# --- the prompt


def test_the_files_say_how_a_pair_becomes_a_text(published: Path) -> None:
    assert load(str(published)).text.pair_template == PairTemplate(TEMPLATE, rerankers.INSTRUCTION)
    file = published / "config_sentence_transformers.json"
    change_json(file, default_prompt_name=None)
    assert load(str(published)).text.pair_template == PairTemplate(TEMPLATE)
    change_json(file, default_prompt_name="other")
    with pytest.raises(ModelError, match="default_prompt_name 'other' and no such prompt"):
        load(str(published))


def test_messages_may_be_structured_and_open_the_answer(plain: Path) -> None:
    folder = rerankers.as_cross_encoder(
        plain, form="structured", processing_kwargs={"chat_template": {"add_generation_prompt": True}}
    )
    template = PairTemplate(TEMPLATE, rerankers.INSTRUCTION, structured=True, generation_prompt=True)
    assert load(str(folder)).text.pair_template == template


def test_without_messages_in_its_files_a_cross_encoder_joins_the_texts(published: Path) -> None:
    change_json(published / "sentence_bert_config.json", modality_config=...)
    assert load(str(published)).text.pair_template is None


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_the_first_revisions_of_qwen3_reranker_get_the_prompt_of_the_card(template: str | None, tmp_path: Path) -> None:
    folder = rerankers.save(tmp_path / "Qwen3-Reranker-8B", rerankers.language_model(), template)
    made = load(str(folder)).text.pair_template
    assert made is not None
    texts = PairTexts(made, {})
    assert texts.text("who?", " me\n") == rerankers.prompted("who?", " me\n")
    assert texts.text("who?", "me", "Find.") == rerankers.prompted("who?", "me", "Find.")
    assert isinstance(texts.text("who?", "me"), Rendered)


def test_another_model_of_two_tokens_has_no_prompt_that_is_known(plain: Path) -> None:
    (plain / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    assert load(str(_by_tokens(plain))).text.pair_template is None


def test_nemotron_has_the_prompt_of_its_card_within_its_own_special_tokens(tmp_path: Path) -> None:
    judge = families.network("llama", "Sequence", num_labels=1)
    folder = families.save(tmp_path, "llama", judge, pooling=None)
    assert load(str(folder)).text.pair_template is None
    change_json(
        folder / "config.json",
        model_type="llama_bidirec",
        architectures=["LlamaBidirectionalForSequenceClassification"],
    )
    checkpoint = load(str(folder))
    assert checkpoint.labels is not None
    assert (checkpoint.labels.reranker, checkpoint.labels.activation) == (True, "sigmoid")
    assert checkpoint.text.pair_template is not None
    text = PairTexts(checkpoint.text.pair_template, {}).text("who?", "me")
    assert (text, isinstance(text, Rendered)) == ("question:who? \n \n passage:me", False)


# --- refusals


def test_gemma2_caps_its_logits_and_is_refused(tmp_path: Path) -> None:
    folder = rerankers.as_cross_encoder(rerankers.save(tmp_path, rerankers.language_model("gemma2")))
    with pytest.raises(UnsupportedModel, match=r"final_logit_softcapping 30\.0"):
        load(str(folder))
    change_json(folder / "config.json", final_logit_softcapping=...)
    with pytest.raises(UnsupportedModel, match=r"final_logit_softcapping 30\.0"):
        load(str(folder))
    change_json(folder / "config.json", final_logit_softcapping=None)
    assert load(str(folder)).model.num_labels == 1


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"architectures": ["Qwen3Model"]}, "architecture Qwen3Model has no logits to rerank by"),
        ("config.json", {"tie_word_embeddings": False}, "the weights lack lm_head.weight"),
        ("1_LogitScore/config.json", {"true_token_id": 9999}, "token 9999, by whose logit the model reranks, is none"),
        ("1_LogitScore/config.json", {"true_token_id": None}, "must give token ids, got true None"),
        ("1_LogitScore/config.json", {"module_input_name": "other"}, "module_input_name 'other'"),
        ("sentence_bert_config.json", {"transformer_task": "any-to-any"}, "transformer_task 'any-to-any'"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method": "forward", "method_output_name": "logits", "format": "xml"}}},
            "makes messages by .*xml",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"chat_template": {"restore_suffix": False}}},
            "processing_kwargs .*restore_suffix",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"max_length": 9}}},
            "processing_kwargs .*max_length",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(file: str, changes: dict[str, Any], said: str, published: Path) -> None:
    change_json(published / file, **changes)
    with pytest.raises((UnsupportedModel, ModelError), match=said):
        load(str(published))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classifier_from_token": ["no", "yes"]}, "with method None; supported: two tokens"),
        ({"classifier_from_token": ["no", "yes"], "method": "no_post_processing"}, "method 'no_post_processing'"),
        ({"classifier_from_token": ["maybe"]}, "no token 'maybe'"),
    ],
)
def test_tokens_that_make_no_score_are_refused(keys: dict[str, Any], said: str, plain: Path) -> None:
    change_json(plain / "config.json", **keys)
    with pytest.raises(ModelError, match=said):
        load(str(plain))


def test_one_token_is_a_score_too(plain: Path) -> None:
    """bge-reranker-v2-gemma as vLLM converts it."""
    change_json(plain / "config.json", classifier_from_token=["yes"], method="no_post_processing")
    checkpoint = load(str(plain))
    assert checkpoint.labels is not None
    assert (checkpoint.labels.reranker, checkpoint.labels.activation) == (True, "sigmoid")


def test_an_output_matrix_with_a_bias_is_refused(published: Path) -> None:
    tensors = load_file(published / "model.safetensors")
    save_file({**tensors, "lm_head.bias": tensors["model.norm.weight"].clone()}, published / "model.safetensors")
    with pytest.raises(WeightsError, match="lm_head has a bias"):
        load(str(published))


def test_messages_without_a_chat_template_are_refused(published: Path) -> None:
    (published / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="makes messages of a pair, and there is no chat template"):
        load(str(published))


def test_an_embedder_of_chat_messages_is_refused(tmp_path: Path) -> None:
    folder = families.save(tmp_path, "bert")
    message = {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"}
    write_json(folder / "sentence_bert_config.json", {"modality_config": {"message": message}})
    with pytest.raises(UnsupportedModel, match="embeds every text as a chat message"):
        load(str(folder))
