"""Held-out scores against NumPy on a model that is a table of next-token logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.agents import language
from bellmax.experiments import evaluation, mesh
from bellmax.experiments.data import pipeline, records, tokenizers

VOCAB = 4
MODEL = language.LanguageModel(
    apply=lambda params, tokens: params[tokens],
    hidden_states=lambda params, tokens: jax.nn.one_hot(tokens, VOCAB) @ params,
    unembedding=lambda params: jnp.eye(VOCAB),
)
RECORDS = [
    records.PreferenceRecord("ab", "a", "bc"),
    records.PreferenceRecord("c", "abc", "b"),
    records.PreferenceRecord("aa", "c", "a"),
    records.PreferenceRecord("b", "bb", "cc"),
    records.PreferenceRecord("ca", "cab", "abca"),
]


@pytest.fixture(scope="module")
def encoded():
    return pipeline.tokenise(RECORDS, tokenizers.CharacterTokenizer("abc"), max_length=8)


@pytest.fixture(scope="module")
def tables():
    return jax.random.normal(jax.random.key(0), (2, VOCAB, VOCAB))


def ids(text):
    return ["abc".index(letter) for letter in text]


def by_hand(table, prompt, completion):
    """Log-probability of a completion and its end token; the laws along the way; its tokens."""
    logits = np.asarray(table, np.float64)
    laws = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens = ids(prompt) + ids(completion) + [3]
    places = range(len(prompt), len(tokens))
    return sum(laws[tokens[t - 1], tokens[t]] for t in places), [
        laws[tokens[t - 1]] for t in places
    ]


@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_reference_log_probs_go_to_their_rows(encoded, tables, batch_size, chunk_size):
    # Two buckets, each with padding rows that repeat a row: they must not overwrite anything.
    batches = pipeline.evaluation_batches(encoded, batch_size=batch_size, bucket_lengths=(5, 8))
    results = evaluation.reference_log_probs(
        MODEL, tables[0], batches, len(RECORDS), mesh=mesh.make_mesh(), chunk_size=chunk_size
    )
    for side, values in zip(("chosen", "rejected"), results, strict=True):
        expected = [by_hand(tables[0], r.prompt, getattr(r, side))[0] for r in RECORDS]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_pair_scores(encoded, tables):
    policy, reference = tables
    batches = pipeline.evaluation_batches(encoded, batch_size=2, bucket_lengths=(5, 8))
    score = evaluation.make_pair_evaluation(MODEL, mesh=mesh.make_mesh(), chunk_size=None)
    result = score(policy, reference, batches, 0.7)

    correct, margins, likely, likely_a_token, kls, nll, tokens = [], [], [], [], [], 0.0, 0
    for record in RECORDS:
        chosen, chosen_laws = by_hand(policy, record.prompt, record.chosen)
        rejected, rejected_laws = by_hand(policy, record.prompt, record.rejected)
        chosen_reference, chosen_base = by_hand(reference, record.prompt, record.chosen)
        rejected_reference, rejected_base = by_hand(reference, record.prompt, record.rejected)
        margin = 0.7 * (chosen - chosen_reference - rejected + rejected_reference)
        margins.append(margin)
        correct.append(margin > 0)
        likely.append(chosen > rejected)
        likely_a_token.append(chosen / len(chosen_laws) > rejected / len(rejected_laws))
        both = zip(chosen_laws + rejected_laws, chosen_base + rejected_base, strict=True)
        kls.append(sum(np.sum(np.exp(p) * (p - q)) for p, q in both) / 2)
        nll, tokens = nll - chosen, tokens + len(chosen_laws)
    assert result.accuracy == pytest.approx(np.mean(correct))
    assert result.accuracy_stderr == pytest.approx(np.std(correct) / np.sqrt(len(RECORDS)))
    assert result.margin == pytest.approx(np.mean(margins), rel=1e-4)
    assert result.log_prob_accuracy == pytest.approx(np.mean(likely))
    assert result.token_log_prob_accuracy == pytest.approx(np.mean(likely_a_token))
    assert result.nll_per_token == pytest.approx(nll / tokens, rel=1e-5)
    assert result.kl_per_completion == pytest.approx(np.mean(kls), rel=1e-4)


def test_the_reference_against_itself(encoded, tables):
    batches = pipeline.evaluation_batches(encoded, batch_size=4, bucket_lengths=(8,))
    for chunk_size in (None, 3):
        score = evaluation.make_pair_evaluation(MODEL, mesh=mesh.make_mesh(), chunk_size=chunk_size)
        result = score(tables[0], tables[0], batches, 1.0)
        assert result.accuracy == 0.5
        assert result.accuracy_stderr == 0
        assert result.margin == pytest.approx(0, abs=1e-6)
        if chunk_size is None:
            assert result.kl_per_completion == pytest.approx(0, abs=1e-6)
        else:
            assert np.isnan(result.kl_per_completion)
