#!/usr/bin/env python3
"""Makes llsteer's demo model again: a Gemma-2 of 5.8 million parameters that writes English and Spanish.

The story, a step each:

  fetch      downloads Debian packages that hold manuals, help pages and messages of programs in both languages
  corpus     makes clean paragraphs of them, English and Spanish, none twice, and lists what came from where
  tokenizer  learns a vocabulary of 4096 pieces and turns the corpus into tokens
  train      trains the model on 25 million of them; goes on where it was interrupted
  export     writes model and vocabulary as one GGUF file, matrices in Q8_0
  check      compares the logits with those of transformers' Gemma2 on the same weights
  evaluate   finds the vector of spanish.yaml and counts how often it turns the language of the prompts

`all` runs them in this order and leaves out what is done. Results of steps lie in the folder --work; every number is in
settings.py, what is downloaded in packages.txt, where the texts are in it and their licences in sources.py. README.md
says what the committed model is and how it was made.
"""

import argparse
from pathlib import Path

import settings


class Work:
    """The files that steps leave for the next ones."""

    def __init__(self, folder):
        self.packages = folder / "packages"
        self.corpus = folder / "corpus.jsonl"
        self.sources = folder / "sources.tsv"
        self.tokenizer = folder / "tokenizer.model"
        self.tokens = folder / "tokens.npz"
        self.checkpoint = folder / "checkpoint.pt"
        self.model = folder / "model.gguf"


# A step imports its module when it runs: fetch needs Python alone, corpus no PyTorch.


def run_fetch(work, options):
    import fetch

    fetch.fetch(work.packages, options.only)


def run_corpus(work, options):
    import corpus

    corpus.build(work.packages, work.corpus, work.sources)


def run_tokenizer(work, options):
    import tokenizer

    tokenizer.build(work.corpus, work.tokenizer, work.tokens, options.vocabulary)


def run_train(work, options):
    import train

    train.train(work.tokens, work.checkpoint, options.tokens, options.processes, options.batch)


def run_export(work, options):
    import export

    export.export(work.checkpoint, work.tokenizer, work.model)


def run_check(work, options):
    import check

    check.check(options.model or work.model)


def run_evaluate(work, options):
    import evaluate

    evaluate.evaluate(options.model or work.model, options.reference)


STEPS = {
    "fetch": run_fetch,
    "corpus": run_corpus,
    "tokenizer": run_tokenizer,
    "train": run_train,
    "export": run_export,
    "check": run_check,
    "evaluate": run_evaluate,
}


def run_all(work, options):
    # fetch and train see for themselves what is done; check and evaluate leave nothing behind.
    results = {"corpus": work.corpus, "tokenizer": work.tokens, "export": work.model}
    for name, step in STEPS.items():
        if name in results and results[name].exists():
            print(f"--- {name}: done before")
        else:
            print(f"--- {name}", flush=True)
            step(work, options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=[*STEPS, "all"], metavar="STEP", help="one of the above, or all")
    parser.add_argument(
        "--work", type=Path, default=settings.HERE / "work", help="folder for everything made (work/ beside this file)"
    )
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="PACKAGE", help="fetch: these packages alone, for a trial run"
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=settings.Shape.vocabulary,
        help="tokenizer: pieces; a small corpus has fewer (%(default)s)",
    )
    parser.add_argument("--tokens", type=int, default=settings.TRAIN_TOKENS, help="train: tokens to see (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=settings.PROCESSES, help="train: one thread each (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=settings.BATCH, help="train: windows per process and step (%(default)s)"
    )
    parser.add_argument("--model", type=Path, help="check, evaluate: a GGUF file in place of the one that export made")
    parser.add_argument("--reference", type=Path, help="evaluate: also write the values for tests to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work = Work(options.work)
    if options.step == "all":
        run_all(work, options)
    else:
        STEPS[options.step](work, options)


if __name__ == "__main__":
    main()
