"""Small Marian folders as Hugging Face has them: random weights, vocabularies trained on a few sentences."""

import io
import json

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

ENGLISH = [
    "the cat sat on the mat", "a man with a hat is here", "two dogs run in the street", "where is the red house ?",
    "she reads an old book", "he said : \"no, thank you.\"", "the children play in the garden", "it is cold today",
]  # fmt: skip
FRENCH = [
    "le chat est assis sur le tapis", "un homme avec un chapeau est ici", "deux chiens courent dans la rue",
    "où est la maison rouge ?", "elle lit un vieux livre", "il a dit : « non, merci. »",
    "les enfants jouent dans le jardin", "il fait froid aujourd'hui",
]  # fmt: skip
SMALL = {
    "model_type": "marian", "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "activation_function": "swish",
    "scale_embedding": True, "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True,
    "max_position_embeddings": 64, "architectures": ["MarianMTModel"],
}  # fmt: skip


def pieces(sentences, size):
    """A SentencePiece model with ids of its own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=size, model_type="unigram",
        num_threads=1, minloglevel=3, hard_vocab_limit=False,
    )  # fmt: skip
    return model.getvalue()


def numbered(*models):
    """A vocabulary over the pieces of models, in an order that is not theirs."""
    found = {">>fr<<": None}
    for model in models:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        found |= dict.fromkeys(processor.id_to_piece(i) for i in reversed(range(3, processor.get_piece_size())))
    found.pop("▁book", None), found.pop("▁street", None)  # pieces that the list lacks become <unk>
    return {token: i for i, token in enumerate(["</s>", "<unk>", *found, "<pad>"])}


def tensors(config, rng):
    """Random weights by their names.

    Sublayers outweigh embeddings, so that a decoder does not repeat what it reads; a large last norm makes it decided;
    and the end of a sentence is likely enough that lengths differ.
    """
    width, shared = config["d_model"], config["share_encoder_decoder_embeddings"]
    sizes = {"encoder": config["vocab_size"], "decoder": config["decoder_vocab_size"]}
    found = {}

    def add(name, *shape, mean=0.0, spread=None):
        spread = spread or (0.7 if len(shape) > 1 else 0.2)
        found[name] = (mean + rng.normal(0, spread, shape)).astype(np.float32)

    for side in ("encoder", "decoder"):
        for i in range(config[f"{side}_layers"]):
            layer, hidden = f"model.{side}.layers.{i}", config[f"{side}_ffn_dim"]
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    add(f"{layer}.{attention}.{projection}.weight", width, width)
                    add(f"{layer}.{attention}.{projection}.bias", width)
                add(f"{layer}.{attention}_layer_norm.weight", width, mean=1.0)
                add(f"{layer}.{attention}_layer_norm.bias", width)
            add(f"{layer}.fc1.weight", hidden, width)
            add(f"{layer}.fc1.bias", hidden)
            add(f"{layer}.fc2.weight", width, hidden)
            add(f"{layer}.fc2.bias", width)
            add(f"{layer}.final_layer_norm.weight", width, mean=1.0)
            add(f"{layer}.final_layer_norm.bias", width)
        if not shared:
            add(f"model.{side}.embed_tokens.weight", sizes[side], width, spread=0.1)
    if shared:
        add("model.shared.weight", sizes["encoder"], width, spread=0.1)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", sizes["decoder"], width, spread=0.1)
    found[f"model.decoder.layers.{config['decoder_layers'] - 1}.final_layer_norm.weight"] *= 8
    add("final_logits_bias", 1, sizes["decoder"])
    found["final_logits_bias"][0, 0] += 2.0
    return found


def write_folder(folder, seed=0, generation=None, change=None, **options):
    """Writes a folder whose configuration is `SMALL` but for ``options``, and returns its path.

    ``change`` may alter the tensors before they are written.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    models = pieces(ENGLISH, 60), pieces(FRENCH, 42)
    shared = options.get("share_encoder_decoder_embeddings", True)
    vocabularies = [numbered(*models)] * 2 if shared else [numbered(models[0]), numbered(models[1])]
    pad = vocabularies[1]["<pad>"]  # of the target, yet transformers wants a row of that number in the source too
    sizes = {"vocab_size": len(vocabularies[0]), "decoder_vocab_size": len(vocabularies[1])}
    special = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0}
    config = SMALL | sizes | special | options
    usual = {"bad_words_ids": [[pad]], "forced_eos_token_id": 0, "num_beams": 4, "max_length": 24}
    files = {
        "config.json": config,
        "generation_config.json": special | usual | (generation or {}),
        "vocab.json": vocabularies[0],
        "tokenizer_config.json": {"separate_vocabs": not shared, "source_lang": "en", "target_lang": "fr"},
    }
    if not shared:
        files["target_vocab.json"] = vocabularies[1]
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for name, model in zip(("source.spm", "target.spm"), models, strict=True):
        (folder / name).write_bytes(model)
    found = tensors(config, rng)
    if change:
        change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_sources(vocabulary, rng, count, longest):
    """Ids of random sentences of mixed lengths, in the numbering of ``vocab.json``, without the end of sentence."""
    ids = [i for token, i in vocabulary.items() if token not in ("</s>", "<pad>")]
    return [rng.choice(ids, rng.integers(1, longest)).tolist() for _ in range(count)]
