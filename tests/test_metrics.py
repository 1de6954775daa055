"""Metrics: BLEU, chrF, alignment error rate, links from attention, perplexity, accuracy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_jax import metrics


class TestTranslation:
    HYPOTHESES = ("the cat sat on a mat", "A dog .")
    REFERENCES = ("the cat sat on the mat", "a dog .")

    def test_bleu_by_hand(self):
        # 5/6 unigrams, 3/5 bigrams, 2/4 trigrams, 1/3 four-grams, lengths equal: (1/12) ** (1/4).
        score = metrics.bleu(self.HYPOTHESES[:1], self.REFERENCES[:1])
        assert score.value == pytest.approx(100 * (1 / 12) ** 0.25, abs=1e-9)
        assert score.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
        assert score.detail == ("precisions 83.3 / 60.0 / 50.0 / 33.3, brevity penalty 1.000, 6 tokens for 6")
        assert str(score) == f"53.73 ({score.detail}) {score.signature}"

    def test_bleu_is_a_corpus_score_with_a_brevity_penalty(self):
        # Counts are summed over sentences before the ratio: 6/6, 4/4, 2/2, 1/1 over 6 tokens where 8 are asked for.
        score = metrics.bleu(["a b c d", "x y"], ["a b c d e", "x y z"])
        assert score.value == pytest.approx(100 * math.exp(1 - 8 / 6), abs=1e-9)

    def test_lowercase_and_tokenizer_are_in_the_signature(self):
        mixed = metrics.bleu(self.HYPOTHESES, self.REFERENCES)
        lower = metrics.bleu(self.HYPOTHESES, self.REFERENCES, tokenize="none", lowercase=True)
        assert lower.value > mixed.value
        assert "|case:lc|" in lower.signature
        assert "|tok:none|" in lower.signature

    def test_tokenized_text_gives_no_advice(self, caplog):
        metrics.bleu(["a cat ."] * 120, ["a cat ."] * 120)
        assert not caplog.records

    def test_chrf_by_hand(self):
        # Precisions 2/2 and 1/1, recalls 2/3 and 1/2: P = 1, R = 7/12, F2 = 5 P R / (4 P + R) = 35/55.
        score = metrics.chrf(["ab"], ["abc"], char_order=2)
        assert score.value == pytest.approx(100 * 35 / 55, abs=1e-9)
        assert score.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:2|nw:0|space:no|version:")
        assert str(score) == f"63.64 {score.signature}"

    def test_chrf_lowercase_and_words(self):
        assert metrics.chrf(["AB cd"], ["ab cd"], lowercase=True, word_order=2).value == 100
        assert metrics.chrf(["AB cd"], ["ab cd"]).value < 100

    @pytest.mark.parametrize("metric", [metrics.bleu, metrics.chrf])
    def test_identical_is_100_and_an_empty_hypothesis_counts(self, metric):
        sentences = ["one two three four five", "six seven eight nine ten"]
        assert metric(sentences, sentences).value == pytest.approx(100)
        assert metric(["", sentences[1]], sentences).value < 100

    @pytest.mark.parametrize("metric", [metrics.bleu, metrics.chrf])
    @pytest.mark.parametrize(
        ("hypotheses", "references", "message"),
        [
            (["a", "b"], ["a"], "found 2 hypotheses and 1 references; keep empty lines"),
            ([], [], "expected at least one sentence, found none"),
            ("a", ["a"], "expected hypotheses as a list of sentences, found one string"),
            (["a"], [["a"]], r"found list at references\[0\]"),
        ],
    )
    def test_bad_corpora(self, metric, hypotheses, references, message):
        with pytest.raises(ValueError, match=message):
            metric(hypotheses, references)

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="expected one of 13a, intl, char, zh, none, found 'spacy'"):
            metrics.bleu(["a"], ["a"], tokenize="spacy")
        with pytest.raises(ValueError, match="found 0 and 0"):
            metrics.chrf(["a"], ["a"], char_order=0)


links_strategy = st.frozensets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


class TestAlignmentErrorRate:
    def test_by_hand_over_two_sentences(self):
        score = metrics.alignment_error_rate(
            links=[{(0, 0), (1, 1), (2, 3)}, {(0, 0)}],
            sure=[{(0, 0), (1, 2)}, {(0, 0), (1, 1)}],
            possible=[{(1, 1)}, set()],
        )
        assert score == metrics.AlignmentScore(links=4, sure=4, sure_hits=2, possible_hits=3)
        assert (score.precision, score.recall, score.error_rate) == (3 / 4, 2 / 4, 1 - 5 / 8)

    def test_without_links(self):
        nothing = metrics.alignment_error_rate([set()], [set()])
        assert (nothing.precision, nothing.recall, nothing.error_rate) == (1.0, 1.0, 0.0)
        missed = metrics.alignment_error_rate([set()], [{(0, 0)}])
        assert (missed.precision, missed.recall, missed.error_rate) == (1.0, 0.0, 1.0)

    @given(st.lists(st.tuples(links_strategy, links_strategy, links_strategy), min_size=1, max_size=4))
    def test_properties(self, sentences):
        links, sure, possible = zip(*sentences, strict=True)
        score = metrics.alignment_error_rate(links, sure, possible)
        assert 0 <= score.error_rate <= 1
        assert metrics.alignment_error_rate(sure, sure, possible).error_rate == 0
        by_sentence = (metrics.alignment_error_rate(*([part] for part in sentence)) for sentence in sentences)
        assert sum(by_sentence, metrics.AlignmentScore()) == score
        # With S = P the rate is one minus the balanced F measure.
        same = metrics.alignment_error_rate(links, sure)
        if same.precision + same.recall > 0 and same.links and same.sure:
            f_measure = 2 * same.precision * same.recall / (same.precision + same.recall)
            assert same.error_rate == pytest.approx(1 - f_measure)

    def test_errors(self):
        with pytest.raises(ValueError, match="found 1 proposed, 2 sure and 2 possible; keep lines without links"):
            metrics.alignment_error_rate([set()], [set(), set()])
        with pytest.raises(ValueError, match="at least one sentence"):
            metrics.alignment_error_rate([], [])


class TestLinks:
    WEIGHTS = np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2], [0.0, 0.0, 0.0]])  # [tgt_len, src_len]

    def test_argmax_takes_the_first_of_equals_and_skips_masked_rows(self):
        assert metrics.weights_to_links(self.WEIGHTS) == {(0, 0), (0, 1)}
        assert metrics.weights_to_links(self.WEIGHTS, threshold=0.5) == {(0, 0)}

    def test_threshold(self):
        assert metrics.weights_to_links(self.WEIGHTS, "threshold", 0.3) == {(0, 0), (1, 0), (0, 1), (1, 1)}
        assert len(metrics.weights_to_links(self.WEIGHTS, "threshold")) == 6  # a weight of zero is no link

    def test_source_comes_first(self):
        assert metrics.weights_to_links([[0, 0, 1.0]]) == {(2, 0)}

    def test_no_tokens(self):
        assert metrics.weights_to_links(np.zeros((0, 3))) == metrics.weights_to_links(np.zeros((3, 0))) == frozenset()

    def test_errors(self):
        with pytest.raises(ValueError, match="argmax or threshold, found 'best'"):
            metrics.weights_to_links(self.WEIGHTS, "best")
        with pytest.raises(ValueError, match=r"found 3 axes \[1, 3, 3\]; choose one sentence and one head first"):
            metrics.weights_to_links(self.WEIGHTS[None])
        with pytest.raises(ValueError, match="NaN"):
            metrics.weights_to_links([[float("nan")]])


class TestMergeTokens:
    SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=5)

    @given(SIZES, SIZES, st.integers(0, 2**32 - 1))
    def test_rows_still_sum_to_one(self, src_sizes, tgt_sizes, seed):
        weights = np.random.default_rng(seed).dirichlet(np.ones(sum(src_sizes)), size=sum(tgt_sizes))
        merged = metrics.merge_tokens(weights, src_sizes, tgt_sizes)
        np.testing.assert_allclose(merged.sum(axis=1), np.ones(len(tgt_sizes)))

    def test_words_of_one_token_stay(self):
        weights = np.random.default_rng(0).random((2, 3))
        np.testing.assert_array_equal(metrics.merge_tokens(weights, [1, 1, 1], [1, 1]), weights)


class TestPharaoh:
    def test_format(self):
        assert metrics.format_pharaoh({(10, 0), (2, 1)}) == "2-1 10-0"
        assert metrics.format_pharaoh({(0, 0)}, possible={(0, 0), (1, 2)}) == "0-0 1?2"
        assert metrics.format_pharaoh(set()) == ""

    @given(st.lists(st.tuples(links_strategy, links_strategy), max_size=4))
    def test_round_trip(self, gold):
        lines = [metrics.format_pharaoh(sure, possible) + "\r\n" for sure, possible in gold]
        assert metrics.parse_pharaoh(lines) == [(sure, sure | possible) for sure, possible in gold]
        assert metrics.parse_pharaoh("".join(lines)) == metrics.parse_pharaoh(lines)

    @pytest.mark.parametrize(
        "text", ["3", "3-", "3--4", "-1-2", "1-2-3", "a-b", "1,2", "²-1", "٣-1", "1-" + "9" * 5000]
    )
    def test_malformed_links_name_the_line(self, text):
        with pytest.raises(ValueError, match=r"^gold\.align:2: expected links such as 3-4") as error:
            metrics.parse_pharaoh(["0-0", f"1-1 {text}"], name="gold.align")
        assert len(str(error.value)) < 200


class TestClassification:
    def test_perplexity(self):
        assert metrics.perplexity(3 * math.log(5), 3) == pytest.approx(5)
        assert metrics.perplexity(0.0, 7) == 1.0
        assert metrics.perplexity(1e9, 1) == math.inf
        assert metrics.perplexity(math.inf, 1) == math.inf

    def test_perplexity_errors(self):
        with pytest.raises(ValueError, match="at least one token, found 0"):
            metrics.perplexity(1.0, 0)
        with pytest.raises(ValueError, match="NaN"):
            metrics.perplexity(math.nan, 3)

    PREDICTIONS = ((1, 2, 3), (4, 5, 0), (0, 0, 0))
    LABELS = ((1, 2, 9), (4, 5, 7), (8, 8, 8))
    MASK = ((True, True, True), (True, True, False), (False, False, False))

    def test_accuracy(self):
        assert metrics.accuracy(self.PREDICTIONS, self.LABELS, self.MASK) == 4 / 5
        assert metrics.accuracy(self.PREDICTIONS, self.LABELS) == 4 / 9
        assert isinstance(metrics.accuracy(np.float32([1]), np.int32([1])), float)

    def test_sequence_accuracy(self):
        assert metrics.sequence_accuracy(self.PREDICTIONS, self.LABELS, self.MASK) == 1 / 2
        assert metrics.sequence_accuracy(self.PREDICTIONS, self.LABELS) == 0

    def test_what_masked_positions_hold_does_not_matter(self):
        other = np.where(self.MASK, self.PREDICTIONS, 99)
        for metric in (metrics.accuracy, metrics.sequence_accuracy):
            assert metric(other, self.LABELS, self.MASK) == metric(self.PREDICTIONS, self.LABELS, self.MASK)

    @pytest.mark.parametrize("metric", [metrics.accuracy, metrics.sequence_accuracy])
    def test_errors(self, metric):
        with pytest.raises(ValueError, match=r"found \[1, 2\], \[2, 1\] and \[2, 1\]"):
            metric([[1, 2]], [[1], [2]])
        with pytest.raises(ValueError, match="boolean mask"):
            metric([[1]], [[1]], [[1.0]])
        with pytest.raises(ValueError, match="found none"):
            metric([[1]], [[1]], [[False]])

    def test_sequences_need_two_axes(self):
        with pytest.raises(ValueError, match=r"\[batch, time\], found \[1\]"):
            metrics.sequence_accuracy([1], [1])
