"""Every number of the recipe, in one place.

The steps read these values and nothing else; the few that a trial run changes (vocabulary, token budget, processes)
can be given on the command line of make_demo.py.
"""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent  # testdata/demo: the committed model, its job, prompts and reference values
PACKAGES = HERE / "packages.txt"
LANGUAGES = DEMO / "languages.json"
PROMPTS = DEMO / "prompts.json"
JOB = DEMO / "spanish.yaml"
COMMITTED_MODEL = DEMO / "model.gguf"

SEED = 0  # of every random choice in making the model


@dataclass(frozen=True)
class Shape:
    """Hyperparameters of a Gemma-2; the field comments name the GGUF keys after "gemma2."."""

    vocabulary: int = 4096
    context: int = 256  # context_length
    width: int = 256  # embedding_length
    blocks: int = 6  # block_count
    heads: int = 4  # attention.head_count
    kv_heads: int = 2  # attention.head_count_kv
    head_width: int = 64  # attention.key_length and attention.value_length
    feed_forward: int = 768  # feed_forward_length
    norm_epsilon: float = 1e-6  # attention.layer_norm_rms_epsilon
    rope_base: float = 10000.0  # rope.freq_base
    attention_cap: float = 50.0  # attn_logit_softcapping
    logit_cap: float = 30.0  # final_logit_softcapping


# A window of 4096 tokens covers the whole context, so the alternating local layers of Gemma-2 see everything too.
SLIDING_WINDOW = 4096

# --- corpus -----------------------------------------------------------------------------------------------------

MIN_PARAGRAPH = 40  # characters; below are labels and headings
MAX_PARAGRAPH = 2500
MIN_MESSAGE = 55  # characters of a program message's English text; below are menu entries
MIN_LETTERS = 0.9  # share of letters and spaces in a paragraph
MAX_CAPITALS = 0.12  # share of capitals
MIN_WORDS = 4
MIN_STOP_WORDS = 0.15  # share of words: sentences are full of them, lists are not
MAX_DOCUMENT = 900  # characters: about one context of 256 tokens, so that most windows open with a document
VALIDATION_SHARE = 0.008

# --- tokenizer --------------------------------------------------------------------------------------------------

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
SPECIAL_TOKENS = (PAD, EOS, BOS, UNKNOWN)
TOKENIZER_CHARACTERS = 10_000_000  # per language: merges that favour neither

# --- training ---------------------------------------------------------------------------------------------------

TRAIN_TOKENS = 25_000_000
PROCESSES = 2  # data-parallel, one thread each: on two cores faster than one process with two threads
BATCH = 10  # windows of one context, per process and step
MUON_RATE = 0.02  # matrices of the blocks
MUON_MOMENTUM = 0.95
MUON_WEIGHT_DECAY = 0.01
ADAM_RATE = 2e-3  # embedding and norms
ADAM_BETAS = (0.9, 0.95)
WARMUP_STEPS = 10
DECAY_SHARE = 1 / 3  # the last part of the steps, over which the rates fall to FINAL_RATE of themselves
FINAL_RATE = 0.02
CHECKPOINT_STEPS = 200
VALIDATION_WINDOWS = 64

# --- evaluation: what spanish.yaml leaves to llsteer's defaults ----------------------------------------------------

COLDNESS = 0.7
EPSILON = 1e-6
STARTING_NORM = 1.0
# Seeds of the start, strengths and length of the continuations in the table of README.md.
SEEDS = (0, 1, 2)
STRENGTHS = (0.0, 0.7, 0.8, 0.9, 1.0)
CONTINUATION_TOKENS = 25
