"""What a translator passes on to the searches, and the verbs to the translator: rules, samples, ensembles, prefixes."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tyro

from attn_jax import cli, hub
from attn_jax.hub import Translator
from attn_jax.search_config import SearchConfig
from attn_jax.verbs.translate import Translate
from tests.test_hub import SRC, make_translator

SENTENCES = ["a b c", "f e d c b", "g", "d d"]


@pytest.fixture(scope="module")
def translator():
    return make_translator()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models that share their vocabularies, one without attention, and one with another vocabulary."""
    base = tmp_path_factory.mktemp("models")
    makers = {
        "one": {},
        "two": {"seed": 1},
        "plain": {"attention": None, "input_feeding": False},
        "other": {"tgt": SRC},
    }
    for name, settings in makers.items():
        make_translator(**settings).save(base / name)
    return base


def text_of(tokens):
    return " ".join(token for token in tokens if token != "</s>")


def test_every_rule_reaches_the_search(translator):
    """Scores by their formula, no token twice, a least length, and attention that is exact under all of them."""
    options = {"beam": 4, "n_best": 2, "groups": 2, "coverage_penalty": 0.3, "no_repeat_ngram": 1, "min_len": 4}
    found = translator(SENTENCES, SearchConfig(length_penalty="average"), **options)
    pairs = [(sentence, h) for sentence, both in zip(SENTENCES, found, strict=True) for h in both]
    scored = translator.score([sentence for sentence, _ in pairs], [h.tokens for _, h in pairs])
    for (_, h), forced in zip(pairs, scored, strict=True):
        assert len(h.tokens) >= 4 and len(set(h.tokens)) == len(h.tokens)
        covered = np.log(np.clip(h.attention.sum(0), 1e-6, 1)).sum()
        assert h.score == pytest.approx(h.log_prob / len(h.tokens) + 0.3 * covered, abs=1e-4)
        if h.tokens[-1] == "</s>":
            assert forced.tokens == h.tokens and forced.log_prob == pytest.approx(h.log_prob, abs=1e-4)
            np.testing.assert_allclose(forced.attention, h.attention, atol=1e-5)


def test_numbers_compile_nothing():
    translator, before = make_translator(embed_dim=6), hub.searches()  # a model that no other test has
    for n, penalty in enumerate((0.0, 0.6, 1.0)):
        options = {"length_penalty": penalty, "coverage_penalty": 0.1 + penalty, "diversity": penalty}
        translator(SENTENCES[n % 2 :], batch_tokens=32, beam=2, n_best=2, groups=2, **options)  # one batch of four rows
    assert hub.searches() == before + 1
    for n, temperature in enumerate((0.5, 1.0)):
        options = {"temperature": temperature, "top_p": 0.8 + 0.1 * n, "min_p": 0.1 + 0.1 * n, "seed": n}
        translator(SENTENCES, batch_tokens=32, sample=True, **options)
    assert hub.searches() == before + 2


def test_a_prefix_begins_the_translation_and_is_part_of_the_result(translator):
    free = translator(SENTENCES, beam=3)
    prefixes = ["C D", ("C",), "", free[3][0].tokens]  # text, tokens, nothing, and a whole sentence
    found = translator(SENTENCES, beam=3, prefix=prefixes)
    assert found[0][0].tokens[:2] == ("C", "D") and found[1][0].tokens[0] == "C"
    assert found[2][0].tokens == free[2][0].tokens
    given = text_of(free[3][0].tokens).split()
    assert list(found[3][0].tokens[: len(given)]) == given
    scored = translator.score(SENTENCES, [h.tokens for (h,) in found])
    for (h,), forced in zip(found, scored, strict=True):
        if h.tokens[-1] == "</s>":
            assert forced.log_prob == pytest.approx(h.log_prob, abs=1e-4)
            np.testing.assert_allclose(forced.attention, h.attention, atol=1e-5)
    alone = translator(SENTENCES[0], beam=3, prefix="C D")[0]
    assert alone.tokens == found[0][0].tokens and alone.score == pytest.approx(found[0][0].score, abs=1e-5)


def test_samples_belong_to_the_sentence_and_its_number(translator):
    options = {"sample": True, "num_samples": 3, "top_k": 6}
    found = translator(SENTENCES, **options)
    assert [len(draws) for draws in found] == [3] * 4
    longer = translator([*SENTENCES, "", "e f g", "b"], **options)
    assert [[h.tokens for h in draws] for draws in longer[:4]] == [[h.tokens for h in draws] for draws in found]
    assert [h.tokens for h in translator(SENTENCES[0], **options)] == [h.tokens for h in found[0]]
    other = translator(SENTENCES, seed=2, **options)
    assert [[h.tokens for h in draws] for draws in other] != [[h.tokens for h in draws] for draws in found]
    moved = translator(["", *SENTENCES], **options)[1:]
    assert [[h.tokens for h in draws] for draws in moved] != [[h.tokens for h in draws] for draws in found]


def test_the_tree_holds_every_hypothesis(translator):
    found = translator("a b c", beam=4, n_best=4, tree=True)
    tree = found[0].tree
    assert all(h.tree is None for h in found[1:])
    paths = []
    for node in tree:
        paths.append((*(paths[node.parent] if node.parent >= 0 else ()), node.token))
    for h in found:
        node = tree[paths.index(h.tokens)]
        assert node.log_prob == pytest.approx(h.log_prob)
        assert node.score == (pytest.approx(h.score) if h.tokens[-1] == "</s>" else None)
    assert translator("a b c", beam=1, tree=True)[0].tree[0].step == 0


def test_alternatives(translator):
    best = translator("a b c", beam=1)[0]
    (scored,) = translator.score(["a b c"], [best.tokens], top_k=3)
    assert len(scored.alternatives) == len(scored.tokens) and scored.log_probs.shape == (len(scored.tokens),)
    for token, log_prob, choices in zip(scored.tokens, scored.log_probs, scored.alternatives, strict=True):
        assert choices[0] == (token, pytest.approx(float(log_prob))) and len(choices) == 3  # it was greedy
        assert choices[0][1] >= choices[1][1] >= choices[2][1]


def test_an_ensemble_averages_log_probabilities_and_attention(folders):
    members = [Translator.load(folders / name) for name in ("one", "two")]
    both = Translator.load(folders / "one", folders / "two")
    found = both(SENTENCES, beam=3)
    tgt = [text_of(h.tokens) for (h,) in found]
    scored = [each.score(SENTENCES, tgt) for each in (both, *members)]
    for (h,), together, one, two in zip(found, *scored, strict=True):
        np.testing.assert_allclose(together.log_probs, (one.log_probs + two.log_probs) / 2, atol=1e-5)
        np.testing.assert_allclose(together.attention, (one.attention + two.attention) / 2, atol=1e-6)
        if together.tokens == h.tokens:
            assert h.log_prob == pytest.approx(together.log_prob, abs=1e-4)
            np.testing.assert_allclose(h.attention, together.attention, atol=1e-5)
    with pytest.raises(ValueError, match="an ensemble has no folder of its own"):
        both.save(folders / "both")


def test_an_ensemble_of_one_model_twice_is_that_model(folders):
    twice, once = Translator.load(*[folders / "one"] * 2), Translator.load(folders / "one")
    for (a,), (b,) in zip(twice(SENTENCES, beam=2), once(SENTENCES, beam=2), strict=True):
        assert a.tokens == b.tokens and a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_a_member_without_attention_leaves_that_of_the_others(folders):
    mixed, one = Translator.load(folders / "one", folders / "plain"), Translator.load(folders / "one")
    given = (["a b c"], ["A B"])
    np.testing.assert_allclose(mixed.score(*given)[0].attention, one.score(*given)[0].attention, atol=1e-6)


def test_an_ensemble_shares_its_vocabularies(folders):
    with pytest.raises(ValueError, match=r"other: its target vocabulary is not that of .*one; .* --init-from"):
        Translator.load(folders / "one", folders / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, found 0"),
        ({"beam": 4, "groups": 3}, "groups must divide beam = 4 and n_best = 1, found 3"),
        ({"coverage_penalty": -1.0}, "coverage_penalty must be at least 0, found -1.0"),
        ({"length_penalty": float("nan")}, "length_penalty must be a finite number, found nan"),
        ({"beam": 2.5}, "beam must be a whole number, found 2.5"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, found 0"),
        ({"min_len": 0}, "min_len must be at least 1, found 0"),
        ({"max_len": 3, "min_len": 4}, "min_len must be at most max_len = 3, found 4"),
        ({"length_penalty": "mean"}, "length_penalty must be a number .* or 'average', found 'mean'"),
        ({"sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"sample": True, "num_samples": 0}, "num_samples must be at least 1, found 0"),
        ({"sample": True, "seed": -1}, r"seed must be within \[0, 2 \*\* 32\), found -1"),
        ({"temperature": 0.5}, "temperature does nothing without sample; give both or neither"),
        ({"sample": True, "beam": 4}, "beam does nothing with sample; give one of them"),
        ({"beam": 4, "diversity": 1.0}, "diversity does nothing in one group; give groups too"),
        ({"sample": True, "tree": True}, "samples have no tree"),
        ({"prefix": "A B", "max_len": 2}, "a prefix of 2 tokens leaves no room in max_len 2; raise max_len"),
        ({"prefix": ("A", "Q")}, "the target vocabulary has no token 'Q'; give it as text"),
        ({"prefix": ("A", "<pad>", "B")}, "a target has no <pad> before its end; leave it out"),
        ({"prefix": ("<s>",)}, "a target has no <s> before its end"),
        ({"prefix": ("A", "</s>", "</s>")}, "a target has no </s> before its end"),
    ],
)
def test_what_is_refused(translator, options, message):
    with pytest.raises(ValueError, match=message):
        translator("a", **options)


def test_no_more_hypotheses_than_there_are(translator):
    found = translator("a", beam=30, n_best=30, max_len=1)
    assert 1 <= len(found) < 30 and all(hypothesis.tokens for hypothesis in found)


def test_prefixes_and_coverage_that_do_not_fit(translator, folders):
    for prefix, found in (("A", "a text"), (["A"], "1")):
        with pytest.raises(ValueError, match=f"expected a prefix for each of the 2 sentences, found {found}"):
            translator(["a", "b"], prefix=prefix)
    with pytest.raises(ValueError, match="sentence 2 is blank and has a prefix"):
        translator(["a", " "], prefix=["", "A"])
    with pytest.raises(ValueError, match="has no attention, which the coverage penalty needs; leave"):
        Translator.load(folders / "plain")("a", coverage_penalty=0.1)
    with pytest.raises(TypeError, match="bean"):
        translator("a", bean=3)


# ------------------------------------------------------------------------------------------------------ command line


def test_what_a_folder_turns_on_can_be_turned_off():
    usual = SearchConfig(beam=4, forced_end=True, renormalize=True)
    parse = lambda *args: tyro.cli(Translate, args=["folder", *args]).search.over(usual)  # noqa: E731
    assert parse() == usual
    assert parse("--no-forced-end", "--beam", "2") == dataclasses.replace(usual, forced_end=False, beam=2)
    assert parse("--no-renormalize", "--sample") == dataclasses.replace(usual, renormalize=False, sample=True)
    assert parse("--forced-end") == usual
    draws = SearchConfig(sample=True)
    assert tyro.cli(Translate, args=["folder", "--top-k", "6"]).search.over(draws).top_k == 6
    assert tyro.cli(Translate, args=["folder", "--no-sample", "--beam", "6"]).search.over(draws).beam == 6


@pytest.fixture
def run(capsys, monkeypatch):
    def with_input(*args, lines=SENTENCES):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("".join(f"{x}\n" for x in lines).encode())))
        cli.main([str(arg) for arg in args])
        return capsys.readouterr()

    return with_input


@pytest.mark.parametrize("option", ["num-samples", "temperature", "top-k", "top-p", "min-p", "seed"])
def test_an_option_of_sampling_without_sampling_is_refused(option, folders, run, capsys):
    with pytest.raises(SystemExit):
        run("translate", folders / "one", f"--{option}", "1")
    said = capsys.readouterr().err
    assert said == f"attn-jax: error: {option.replace('-', '_')} does nothing without sample; give both or neither\n"


def test_translate_with_an_ensemble_prefixes_and_samples(folders, run, tmp_path, capsys):
    (tmp_path / "prefix").write_text("A B\n\nC\n\n")
    options = ["--ensemble", folders / "two", "--prefix", tmp_path / "prefix", "--no-repeat-ngram", "2", "--beam", "2"]
    lines = run("translate", folders / "one", *options).out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("A B") and lines[2].startswith("C")
    with pytest.raises(SystemExit):
        run("translate", folders / "one", "--prefix", tmp_path / "prefix", lines=["a"])
    assert "expected a line for each of the 1 read, found 4" in capsys.readouterr().err

    sample = ["--sample", "--num-samples", "2", "--top-k", "6", "--seed", "3"]
    drawn = run("translate", folders / "one", *sample).out.splitlines()
    assert [line.split(" ||| ")[0] for line in drawn] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    more = run("translate", folders / "one", *sample, lines=[*SENTENCES, "b b", "c"]).out.splitlines()
    texts = [[line.split(" ||| ")[1] for line in each[:8]] for each in (drawn, more)]
    assert texts[0] == texts[1]


def test_score(folders, run, tmp_path, capsys):
    (tmp_path / "src").write_text("a b c\n\nf e d\n" + "a " * 2000 + "\n")
    (tmp_path / "tgt").write_text("A B\nC\nC D\nA\n")
    files = ["--src", tmp_path / "src", "--tgt", tmp_path / "tgt"]
    plain = run("score", folders / "one", *files)
    first, blank, third, too_long = plain.out.split("\n")[:4]
    expected = Translator.load(folders / "one").score(["a b c", "f e d"], ["A B", "C D"])
    for line, scored in ((first, expected[0]), (third, expected[1])):
        total, *tokens = line.split("\t")
        assert float(total) == pytest.approx(scored.log_prob, abs=1e-3)
        assert [token.rpartition("=")[0] for token in tokens] == list(scored.tokens)
        np.testing.assert_allclose([float(t.rpartition("=")[2]) for t in tokens], scored.log_probs, atol=1e-4)
    assert blank == too_long == "" and "1 lines longer than 1,024 tokens" in plain.err
    assert "2 pairs, 6 tokens" in plain.err and "perplexity" in plain.err

    records = run("score", folders / "one", *files, "--json", "--attention", "--top-k", "2").out.splitlines()
    first, blank, *_ = map(json.loads, records)
    assert first["line"] == 0 and first["log_prob"] == pytest.approx(expected[0].log_prob)
    assert first["tokens"] == ["A", "B", "</s>"] and first["src_tokens"] == ["a", "b", "c", "</s>"]
    np.testing.assert_allclose(first["attention"], expected[0].attention, atol=1e-6)
    assert [len(choices) for choices in first["alternatives"]] == [2, 2, 2] and blank == {"line": 1, "log_prob": None}
    both = json.loads(run("score", folders / "one", *files, "--json", "--ensemble", folders / "two").out.split("\n")[0])
    assert both["log_prob"] != first["log_prob"] and "attention" not in both

    (tmp_path / "tgt").write_text("A B\n")
    for more, said in (
        ([], "line i of one must translate line i of the other"),
        (["--attention"], "--attention and --top-k add to the JSON"),
    ):
        with pytest.raises(SystemExit):
            run("score", folders / "one", *files, *more)
        assert said in capsys.readouterr().err


def test_evaluate_an_ensemble(folders, run, tmp_path):
    (tmp_path / "src").write_text("".join(f"{line}\n" for line in SENTENCES))
    (tmp_path / "ref").write_text("A B\n" * 4)
    files = ["--src", tmp_path / "src", "--ref", tmp_path / "ref"]
    found = json.loads(run("evaluate", folders / "one", *files, "--ensemble", folders / "two", "--json").out)
    assert found["sentences"] == 4 and 0 <= found["BLEU"]["value"] <= 100
