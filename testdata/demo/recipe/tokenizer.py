"""Step 3: a vocabulary for the corpus, and the corpus as tokens.

SentencePiece merges pairs (BPE) with a byte for each sign it does not know, and puts no space before a text: " menu"
and "menu" stay two things, and nothing in a token tells that a text begins.
"""

import io
import json
import os
import random

import numpy
import sentencepiece

import settings

ROLES = {"pad": settings.PAD, "eos": settings.EOS, "bos": settings.BOS, "unk": settings.UNKNOWN}
CONTROL_PIECES = ["<start_of_turn>", "<end_of_turn>"]  # unused here; Gemma's vocabulary has them
WHOLE_PIECES = ["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]  # never parts of a longer piece; ▁ is SentencePiece's space


def read_corpus(path):
    """[(language, [paragraph, …]), …]"""
    with path.open(encoding="utf-8") as lines:
        return [(language, paragraphs) for _, language, paragraphs in map(json.loads, lines)]


def train(corpus, path, vocabulary):
    rng = random.Random(settings.SEED)
    sample = []
    for language in ("english", "spanish"):
        texts = [text for own, paragraphs in corpus if own == language for text in paragraphs]
        rng.shuffle(texts)
        left = settings.TOKENIZER_CHARACTERS
        for text in texts:
            if left <= 0:
                break
            sample.append(text)
            left -= len(text)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        control_symbols=CONTROL_PIECES,
        user_defined_symbols=WHOLE_PIECES,
        max_sentence_length=4 * settings.MAX_PARAGRAPH,  # bytes; anything longer would be left out
        num_threads=1,
        minloglevel=1,
        **{f"{role}_id": token for role, token in ROLES.items()},
        **{f"{role}_piece": f"<{role}>" for role in ROLES},
    )
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(model.getvalue())
    os.replace(partial, path)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def documents(paragraphs):
    """Texts of one or more paragraphs, a line each, of at most MAX_DOCUMENT characters if the paragraphs allow."""
    text = ""
    for paragraph in paragraphs:
        if text and len(text) + len(paragraph) > settings.MAX_DOCUMENT:
            yield text
            text = ""
        text = f"{text}\n{paragraph}" if text else paragraph
    if text:
        yield text


def encode(corpus, tokenizer, path):
    """Writes an .npz with the size of the vocabulary and, for training and validation and each language, `…_tokens`
    and `…_ends` (of documents).

    Each document opens with BOS. Validation documents are drawn at random, so their neighbours on the same page may be
    in the training part: the validation loss says how well the model knows this world, not how it does in another.
    """
    rng = random.Random(settings.SEED)
    parts = {}
    for language, paragraphs in corpus:
        for text in documents(paragraphs):
            part = "validation" if rng.random() < settings.VALIDATION_SHARE else "training"
            parts.setdefault(f"{part}_{language}", []).append([settings.BOS, *tokenizer.encode(text)])
    arrays = {"vocabulary": numpy.array(tokenizer.vocab_size())}
    for name, texts in sorted(parts.items()):
        arrays[f"{name}_tokens"] = numpy.concatenate([numpy.array(text, numpy.uint16) for text in texts])
        arrays[f"{name}_ends"] = numpy.cumsum([len(text) for text in texts])
        print(f"{name}: {len(texts)} documents, {len(arrays[f'{name}_tokens'])} tokens")
    partial = path.with_name(path.stem + ".part.npz")
    numpy.savez(partial, **arrays)
    os.replace(partial, path)


def build(corpus_path, tokenizer_path, tokens_path, vocabulary):
    if not corpus_path.exists():
        raise SystemExit(f"{corpus_path} is missing: run the step corpus first")
    corpus = read_corpus(corpus_path)
    tokenizer = train(corpus, tokenizer_path, vocabulary)
    encode(corpus, tokenizer, tokens_path)
