"""Which language a text is in, and whether it loops, by simple rules that any program can repeat.

Words and numbers stand in ../languages.json; README.md there and here says the rules in prose.
"""

import json
import re
from collections import Counter

import settings

RULES = json.loads(settings.LANGUAGES.read_text(encoding="utf-8"))
STOP_WORDS = {language: frozenset(words) for language, words in RULES["words"].items()}
WORD = re.compile(f"[{RULES['word_letters']}]+")
MARK = re.compile(f"[{RULES['spanish_marks']}]")


def scores(text):
    """(English score, Spanish score, number of words)."""
    text = text.lower()
    words = WORD.findall(text)
    english = sum(word in STOP_WORDS["english"] for word in words)
    spanish = sum(word in STOP_WORDS["spanish"] for word in words)
    return english, spanish + RULES["mark_score"] * len(MARK.findall(text)), len(words)


def language(text):
    """ "english", "spanish", or None where neither clearly leads."""
    english, spanish, _ = scores(text)
    for name, own, other in (("spanish", spanish, english), ("english", english, spanish)):
        if own >= RULES["min_score"] and own >= RULES["min_ratio"] * other:
            return name
    return None


def loops(text):
    """Whether a run of words comes again and again, or most words are repeats."""
    words, span = text.split(), RULES["loop_span"]
    runs = Counter(tuple(words[i : i + span]) for i in range(len(words) - span + 1))
    if max(runs.values(), default=0) >= RULES["loop_repeats"]:
        return True
    return len(set(words)) < RULES["min_distinct"] * len(words)
