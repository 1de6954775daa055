"""The notebooks' own modules, written in PyTorch, and ours with their weights: equal outputs, weights, gradients."""

import jax
import numpy as np
import pytest

from attn_jax.convert import notebooks
from attn_jax.convert.torch import from_torch
from attn_jax.decoding import greedy
from attn_jax.models.classifier import RecurrentClassifier, RecurrentClassifierConfig
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Batch
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.nn.attention import AdditiveAttention, ConcatAttention, GeneralAttention, MultiHeadAttention
from attn_jax.nn.transformer import EncoderBlock
from tests.torch_parity import assert_equal_both_ways, count, normal, random_params, shapes_of, state_of

torch = pytest.importorskip("torch")
nn = torch.nn

BATCH, SRC, TGT = 3, 5, 4
MAX_LENGTH = 10


def equal(theirs, run_theirs, layout, ours, run_ours, inputs, *init, **options):
    """Both directions, in double precision; ``init`` are the arguments that initialise ours, if not the inputs."""
    params = random_params(shapes_of(ours, *(init or inputs)))
    return assert_equal_both_ways(torch, theirs.double(), run_theirs, layout, params, run_ours, inputs, **options)


def batch_of(src, tgt, src_mask=None):
    everywhere = lambda x: np.ones(x.shape[:2], bool)  # noqa: E731
    mask = everywhere(src) if src_mask is None else src_mask
    return Batch(src=src, src_mask=mask, tgt=tgt, tgt_mask=everywhere(tgt))


def words(seed, time, vocab):
    return np.random.default_rng(seed).integers(4, vocab, (BATCH, time))


# ------------------------------------------------------------------------------------------------------------ attention


class Additive(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.W, self.U, self.v = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, outputs, state):
        scores = self.v(torch.tanh(self.W(outputs) + self.U(state)[:, None]))[..., 0]
        weights = torch.softmax(scores, dim=-1)
        return (weights[..., None] * outputs).sum(1), weights


class Multiplicative(nn.Module):
    def __init__(self, hidden, kind):
        super().__init__()
        self.kind = kind
        if kind.startswith("general"):
            self.W = nn.Linear(hidden, hidden, bias=False)
        else:
            self.W, self.v = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, outputs, state):
        query = state[:, None]
        if self.kind == "general":
            scores = (self.W(outputs) * query).sum(-1)
        elif self.kind == "general of query":
            scores = (outputs * self.W(query)).sum(-1)
        else:
            scores = self.v(torch.tanh(self.W(torch.cat([outputs, query.expand_as(outputs)], -1))))[..., 0]
        weights = torch.softmax(scores, dim=-1)
        return (weights[..., None] * outputs).sum(1), weights


ATTENTIONS = {
    "additive": (AdditiveAttention, notebooks.ADDITIVE, 128, 33_153),
    "general": (GeneralAttention, notebooks.GENERAL, 64, 4_096),
    "general of query": (GeneralAttention, notebooks.GENERAL_OF_QUERY, 64, 4_096),
    "concat": (ConcatAttention, notebooks.CONCAT, 64, 8_321),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attentions(kind, x64):
    ours, layout, hidden, parameters = ATTENTIONS[kind]
    make = lambda size: Additive(size) if kind == "additive" else Multiplicative(size, kind)  # noqa: E731
    assert count(make(hidden)) == parameters
    ours = ours(**({} if ours is GeneralAttention else {"features": 6}))
    inputs = [normal(1, BATCH, SRC, 6), normal(2, BATCH, 6)]

    def run(params, outputs, state):
        context, weights = ours.apply({"params": params}, state[:, None], outputs)
        return context[:, 0], weights[:, 0]

    query_and_keys = (inputs[1][:, None], inputs[0])
    equal(make(6), lambda module, *of: module(*of), layout, ours, run, inputs, *query_and_keys)


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        split = lambda y: y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # noqa: E731
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = torch.softmax(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape)), weights


class PostNormBlock(nn.Module):
    def __init__(self, width, heads, dropout=0.1):
        super().__init__()
        self.attention, self.norm1, self.norm2 = SelfAttention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        attended, weights = self.attention(x)
        x = self.drop(self.norm1(x + attended))
        return self.drop(self.norm2(x + self.feed_forward(x))), weights


def test_self_attention(x64):
    ours, inputs = MultiHeadAttention(features=8, num_heads=2), [normal(1, 1, SRC, 8)]
    run = lambda params, x: ours.apply({"params": params}, x, x)  # noqa: E731
    call = lambda module, x: module(x)  # noqa: E731
    equal(SelfAttention(8, 2), call, notebooks.SELF_ATTENTION, ours, run, inputs, inputs[0], inputs[0])


def test_post_norm_block(x64):
    ours = EncoderBlock(features=8, num_heads=2, ffn_dim=16, norm_epsilon=1e-5)
    run = lambda params, x: ours.apply({"params": params}, x)  # noqa: E731
    call = lambda module, x: module(x)  # noqa: E731
    block, inputs = PostNormBlock(8, 2).eval(), [normal(1, 2, SRC, 8)]
    equal(block, call, notebooks.POST_NORM_BLOCK, ours, run, inputs)


# --------------------------------------------------------------------------------------------------------------- models


class BidirectionalRNN(nn.Module):
    def __init__(self, features, hidden):
        super().__init__()
        self.forward_rnn = nn.RNN(features, hidden, batch_first=True)
        self.backward_rnn = nn.RNN(features, hidden, batch_first=True)
        self.fc = nn.Linear(2 * hidden, 1)

    def forward(self, x):
        backward = self.backward_rnn(x.flip(1))[0].flip(1)
        return self.fc(torch.cat([self.forward_rnn(x)[0], backward], -1))


def test_bidirectional_rnn(x64):
    assert count(BidirectionalRNN(5, 16)) == 769
    config = {"num_outputs": 1, "input_features": 5, "hidden": 6}
    ours = RecurrentClassifier(RecurrentClassifierConfig(pooling="steps", **config))
    run = lambda params, x: (ours.apply({"params": params}, x)[0],)  # noqa: E731
    call = lambda module, x: (module(x),)  # noqa: E731
    equal(BidirectionalRNN(5, 6), call, notebooks.BIRNN, ours, run, [normal(1, BATCH, 7, 5)])


class ContinuousDecoder(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(width, hidden, batch_first=True), nn.Linear(hidden, width)

    def forward(self, x, state):
        outputs, state = self.lstm(x, state)
        return self.fc(outputs), state


class ContinuousEncoder(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, x):
        return self.lstm(x)


def shifted(tgt):
    return torch.cat([torch.zeros_like(tgt[:, :1]), tgt[:, :-1]], 1)


def test_continuous_encoder_decoder(x64):
    assert (count(ContinuousEncoder(10, 32)), count(ContinuousDecoder(10, 32))) == (5_632, 5_962)
    theirs = nn.ModuleDict({"encoder": ContinuousEncoder(4, 6), "decoder": ContinuousDecoder(4, 6)})
    sizes = {"src_features": 4, "tgt_features": 4, "embed_dim": 4, "encoder_hidden": 6, "decoder_hidden": 6}
    ours = Seq2Seq(Seq2SeqConfig(**sizes, **notebooks.CONTINUOUS_SETTINGS))
    inputs = [normal(1, BATCH, SRC, 4), normal(2, BATCH, TGT, 4)]

    def run_theirs(module, src, tgt):
        return (module["decoder"](shifted(tgt), module["encoder"](src)[1])[0],)

    def run(params, src, tgt):
        return (ours.apply({"params": params}, batch_of(src, tgt))[0],)

    equal(theirs, run_theirs, notebooks.CONTINUOUS, ours, run, inputs, batch_of(*inputs), folds=True)


class WordEncoder(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(vocab, hidden), nn.LSTM(hidden, hidden, batch_first=True)

    def forward(self, tokens):
        return self.lstm(self.embedding(tokens))


class AttentionDecoder(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(vocab, hidden), Additive(hidden)
        self.lstm, self.fc = nn.LSTM(2 * hidden, hidden, batch_first=True), nn.Linear(2 * hidden, vocab)

    def forward(self, token, state, outputs):
        context, weights = self.attention(outputs, state[0][-1])
        inputs = torch.cat([self.embedding(token), context], -1)[:, None]
        output, state = self.lstm(inputs, state)
        return self.fc(torch.cat([output[:, 0], context], -1)), state, weights


def teach(module, src, tgt):
    """Logits and weights of every step, fed the true word before it."""
    outputs, state = module["encoder"](src)
    steps = []
    for token in torch.cat([torch.full_like(tgt[:, :1], BOS_ID), tgt[:, :-1]], 1).T:
        logits, state, weights = module["decoder"](token, state, outputs)
        steps.append((logits, weights))
    return [torch.stack(part, 1) for part in zip(*steps, strict=True)]


def test_attention_lstm(x64):
    theirs = nn.ModuleDict({"encoder": WordEncoder(9, 6), "decoder": AttentionDecoder(8, 6)})
    sizes = {"src_vocab_size": 9, "tgt_vocab_size": 8, "embed_dim": 6, "encoder_hidden": 6, "decoder_hidden": 6}
    ours = Seq2Seq(Seq2SeqConfig(**sizes, **notebooks.ATTENTION_LSTM_SETTINGS))

    run = lambda params, src, tgt: ours.apply({"params": params}, batch_of(src, tgt))  # noqa: E731
    inputs = [words(1, SRC, 9), words(2, TGT, 8)]
    equal(theirs, teach, notebooks.attention_lstm(), ours, run, inputs, batch_of(*inputs))


def one_hot(tokens, vocab, like):
    return nn.functional.one_hot(tokens, vocab).to(like.dtype)


class OneHotEncoder(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.vocab = vocab
        self.lstm = nn.LSTM(vocab, hidden, 2, batch_first=True, bidirectional=True)

    def forward(self, tokens):
        outputs, state = self.lstm(one_hot(tokens, self.vocab, self.lstm.weight_ih_l0))
        # From [layers * 2, batch, hidden] to [layers, batch, 2 * hidden], which the notebook lacks.
        return outputs, tuple(torch.cat([part[::2], part[1::2]], -1) for part in state)


class OneHotDecoder(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.vocab, self.attention = vocab, Additive(hidden)
        self.lstm, self.fc = nn.LSTM(vocab, hidden, 2, batch_first=True), nn.Linear(2 * hidden, vocab)

    def forward(self, token, state, outputs):
        output, state = self.lstm(one_hot(token, self.vocab, self.lstm.weight_ih_l0)[:, None], state)
        context, weights = self.attention(outputs, output[:, 0])
        return self.fc(torch.cat([output[:, 0], context], -1)), state, weights


def test_one_hot_translator(x64):
    whole = nn.ModuleDict({"encoder": OneHotEncoder(100, 256), "decoder": OneHotDecoder(100, 512)})
    assert count(whole) == 6_297_189
    theirs = nn.ModuleDict({"encoder": OneHotEncoder(8, 3), "decoder": OneHotDecoder(8, 6)})
    sizes = {"src_vocab_size": 8, "tgt_vocab_size": 8, "embed_dim": 8, "encoder_hidden": 3, "decoder_hidden": 6}
    settings = notebooks.ONE_HOT_TRANSLATOR_SETTINGS | {"encoder_layers": 2, "decoder_layers": 2}
    ours = Seq2Seq(Seq2SeqConfig(**sizes, **settings))

    run = lambda params, src, tgt: ours.apply({"params": params}, batch_of(src, tgt))  # noqa: E731
    inputs = [words(1, SRC, 8), words(2, TGT, 8)]
    equal(theirs, teach, notebooks.one_hot_translator(), ours, run, inputs, batch_of(*inputs), folds=True)


class EncoderRNN(nn.Module):
    def __init__(self, vocab, hidden):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(vocab, hidden), nn.GRU(hidden, hidden)

    def forward(self, token, hidden):
        return self.gru(self.embedding(token).view(1, 1, -1), hidden)


class AttnDecoderRNN(nn.Module):
    def __init__(self, hidden, vocab, max_length=MAX_LENGTH):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.attn, self.attn_combine = nn.Linear(2 * hidden, max_length), nn.Linear(2 * hidden, hidden)
        self.gru, self.out = nn.GRU(hidden, hidden), nn.Linear(hidden, vocab)

    def forward(self, token, hidden, outputs):
        embedded = self.embedding(token).view(1, 1, -1)
        weights = torch.softmax(self.attn(torch.cat([embedded[0], hidden[0]], 1)), dim=1)
        context = weights @ outputs  # [1, hidden], over all slots
        combined = torch.relu(self.attn_combine(torch.cat([embedded[0], context], 1)))
        output, hidden = self.gru(combined[None], hidden)
        return torch.log_softmax(self.out(output[0]), dim=1), hidden, weights


VOCAB, SOS, EOS = 16, 0, 1
IDS = [BOS_ID, EOS_ID, *range(4, 18)]
"""Our ids of the tutorial's SOS, EOS and words."""
LENGTHS = [5, 3, 1]
"""Words of each source; the tutorial reads one sentence at a time, into slots of zeros."""


def read(encoder, sentence, hidden):
    """The last state, and the outputs in their slots."""
    outputs = [torch.zeros(1, hidden, dtype=torch.float64)] * MAX_LENGTH
    state = torch.zeros(1, 1, hidden, dtype=torch.float64)
    for position, token in enumerate(sentence):
        output, state = encoder(token, state)
        outputs[position] = output[0]
    return state, torch.cat(outputs)


def tutorial(hidden):
    theirs = nn.ModuleDict({"encoder": EncoderRNN(VOCAB, hidden), "decoder": AttnDecoderRNN(hidden, VOCAB)}).double()
    sizes = dict.fromkeys(("embed_dim", "encoder_hidden", "decoder_hidden", "squeeze"), hidden)
    config = Seq2SeqConfig(src_vocab_size=18, tgt_vocab_size=18, **sizes, **notebooks.GRU_TUTORIAL_SETTINGS)
    return theirs, Seq2Seq(config)


def tutorial_batch(src, tgt):
    ids = np.array(IDS)
    return batch_of(ids[src], ids[tgt], np.arange(SRC) < np.array(LENGTHS)[:, None])


def test_gru_tutorial(x64):
    whole, _ = tutorial(128)
    assert (count(whole["encoder"]), count(whole["decoder"])) == (101_120, 138_650)
    theirs, ours = tutorial(6)

    def run_theirs(module, src, tgt):
        rows = []
        for sentence, length, target in zip(src, LENGTHS, tgt, strict=True):
            state, outputs = read(module["encoder"], sentence[:length], 6)
            steps = []
            for token in [torch.tensor(SOS), *target[:-1]]:
                log_probs, state, weights = module["decoder"](token, state, outputs)
                steps.append((log_probs[0], torch.where(torch.arange(SRC) < length, weights[0, :SRC], 0)))
            rows.append([torch.stack(part) for part in zip(*steps, strict=True)])
        return [torch.stack(part) for part in zip(*rows, strict=True)]

    def run(params, src, tgt):
        logits, weights = ours.apply({"params": params}, tutorial_batch(src, tgt))
        return jax.nn.log_softmax(logits[..., np.array(IDS)]), weights

    inputs = [words(1, SRC, VOCAB), words(2, TGT, VOCAB)]
    layout = notebooks.gru_tutorial(IDS, IDS)
    equal(theirs, run_theirs, layout, ours, run, inputs, tutorial_batch(*inputs), folds=True)


def test_gru_tutorial_decodes_the_same(x64):
    theirs, ours = tutorial(6)
    with torch.no_grad():
        theirs["decoder"].out.bias[SOS] = -1e9  # a search here never emits it
    src = words(1, SRC, VOCAB)
    batch = tutorial_batch(src, src)
    params = from_torch(state_of(theirs), notebooks.gru_tutorial(IDS, IDS), shapes_of(ours, batch))
    variables = {"params": params}

    @jax.jit
    def search(variables, batch):
        state = ours.apply(variables, batch, 6, method="start")
        return greedy(lambda *of: ours.apply(variables, *of, method="step"), state, max_len=6)

    found = search(variables, batch)
    probabilities = jax.nn.softmax(ours.apply(variables, batch)[0])
    assert not np.asarray(probabilities)[..., [PAD_ID, UNK_ID]].any()
    for row, length in enumerate(LENGTHS):
        state, outputs = read(theirs["encoder"], torch.tensor(src[row, :length]), 6)
        token, expected = torch.tensor(SOS), []
        while len(expected) < 6 and EOS_ID not in expected:
            log_probs, state, _ = theirs["decoder"](token, state, outputs)
            token = log_probs.argmax()
            expected.append(IDS[token])
        assert found.tokens[row, 0, : len(expected)].tolist() == expected
