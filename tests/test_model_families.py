"""Models from settings that were read from JSON or a command line: what is wrong is said before anything is built."""

import dataclasses

import pytest

from attn_jax.models.families import FAMILIES, build_model, family_of

WORDS = {"src_vocab_size": 9, "tgt_vocab_size": 9}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_settings_of_a_model_build_it_again(family):
    model = build_model(family, WORDS)
    assert family_of(model) == family
    assert build_model(family, dataclasses.asdict(model.config)) == model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share_embeddings": 1}, "share_embeddings must be of type bool, found 1 of type int"),
        ({"decoder_layers": True}, "decoder_layers must be of type int, found True of type bool"),
        ({"decoder_layers": 2.0}, "decoder_layers must be of type int, found 2.0 of type float"),
        ({"decoder_layers": "2"}, "decoder_layers must be of type int, found '2' of type str"),
        ({"decoder_layers": None}, "decoder_layers must be of type int, found None of type NoneType"),
        ({"dropout": False}, "dropout must be of type float, found False of type bool"),
        ({"dropout": "0.1"}, "dropout must be of type float, found '0.1' of type str"),
        ({"precision": 32}, "precision must be of type str, found 32 of type int"),
        ({"colour": 1, "beam": 2}, "unknown settings of the .* model: beam, colour; there are .*dropout.*precision"),
    ],
)
def test_what_a_setting_of_the_wrong_type_says(family, settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(family, WORDS | settings)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("recurrent", {"attention": 3}, r"attention must be of type str \| None, found 3 of type int"),
        ("recurrent", {"attention": ["dot"]}, r"attention must be of type str \| None, found \['dot'\] of type list"),
        (
            "recurrent",
            {"attention_options": [2]},
            r"attention_options must be of type dict.*, found \[2\] of type list",
        ),
        ("recurrent", {"attention_options": {"use_bias": "yes"}}, "use_bias must be of type bool, found 'yes'"),
        ("transformer", {"alignment_layer": "last"}, r"alignment_layer must be of type int \| None, found 'last'"),
    ],
)
def test_what_a_setting_of_one_family_says(family, settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(family, WORDS | settings)


def test_whole_numbers_are_numbers_and_none_is_none():
    assert build_model("recurrent", WORDS | {"dropout": 0, "attention": None}).config.attention is None
    assert build_model("transformer", WORDS | {"dropout": 0, "alignment_layer": None}).config.dropout == 0


def test_missing_settings_and_families():
    with pytest.raises(ValueError, match="the transformer model needs tgt_vocab_size"):
        build_model("transformer", {"src_vocab_size": 9})
    with pytest.raises(ValueError, match="unknown model family 'rnn'; choose one of recurrent, transformer"):
        build_model("rnn", WORDS)
