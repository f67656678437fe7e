"""Step 2: from the fetched files to a corpus of clean paragraphs, each in one of two languages, none twice."""

import hashlib
import json
import os
import re
import struct
import sys
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

from lxml import etree

import languages
import readers
import settings
import sources
from fetch import VERSION_FILE

# One form for each sign, so that the small vocabulary is not spent on variants.
PLAIN_SIGNS = str.maketrans(
    {
        "\u00a0": " ",  # no-break space
        "\u00ad": "",  # soft hyphen
        "\u200b": "",  # zero-width space
        "“": '"',
        "”": '"',
        "„": '"',
        "‘": "'",
        "’": "'",
        "…": "...",
        "–": "-",
        "—": " - ",
    }
)

LETTERS_OF_BOTH = "áéíóúüñÁÉÍÓÚÜÑçèàêâîôû"
FOREIGN_SIGN = re.compile(rf"[^\x20-\x7e{LETTERS_OF_BOTH}¿¡«»ºª°€]")
MACHINE_TEXT = re.compile(
    r"://|www\.|[{}\\<>|=_@#^~$]"  # addresses, code, markup
    r"|%[a-z1-9]"  # a place that a program fills in
    r"|/[a-z]+/|\.\w+\.\w+"  # paths, dotted names
    r"|--\w|&\w+;"  # command-line options, entities
)
# What removing a figure, a link's text or an inline sample leaves behind.
GAP = re.compile(r" [,.]|,,|\(\)|''|\"\"|\b(the|a|an|of|el|la|los|las|de|un|una)\.|[a-z]\.[A-Z]")
SENTENCE_START = re.compile(r"[\"«'(¿¡]*[A-ZÁÉÍÓÚÑ]")
SENTENCE_END = tuple(".!?\"»)'")


def tidy(text):
    text = unicodedata.normalize("NFC", text).translate(PLAIN_SIGNS)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?)])", r"\1", text)  # left by markup before a sign
    return text.replace("( ", "(")


def is_prose(text, language):
    """Whether a paragraph is whole sentences of that language and of nothing else."""
    if not settings.MIN_PARAGRAPH <= len(text) <= settings.MAX_PARAGRAPH:
        return False
    if not SENTENCE_START.match(text) or not text.endswith(SENTENCE_END):
        return False
    if text.count("(") != text.count(")"):
        return False
    if MACHINE_TEXT.search(text) or FOREIGN_SIGN.search(text) or GAP.search(text):
        return False
    if sum(sign.isalpha() or sign == " " for sign in text) < settings.MIN_LETTERS * len(text):
        return False
    if sum(sign.isupper() for sign in text) > settings.MAX_CAPITALS * len(text):
        return False
    english, spanish, words = languages.scores(text)
    own, other = (english, spanish) if language == "english" else (spanish, english)
    # Stricter than languages.language(): a text of the wrong language would teach the model to mix them.
    return words >= settings.MIN_WORDS and own >= 2 * other + 1 and own > settings.MIN_STOP_WORDS * words


@dataclass
class Amount:
    documents: int = 0
    characters: int = 0


class Corpus:
    """Collects documents, leaves out paragraphs seen before, and counts what each package gave."""

    def __init__(self, output):
        self.output = output
        self.seen = set()
        self.amounts = defaultdict(Amount)  # (source, package, language)

    def add(self, source, package, language, paragraphs):
        kept = []
        for text in map(tidy, paragraphs):
            if not is_prose(text, language):
                continue
            # Letters only: the same sentence with another number or another sign teaches nothing new.
            letters = re.sub(r"[\W\d]", "", text.lower())
            key = hashlib.blake2b(letters.encode(), digest_size=10).digest()
            if key not in self.seen:
                self.seen.add(key)
                kept.append(text)
        if kept:
            self.output.write(json.dumps([source.name, language, kept], ensure_ascii=False) + "\n")
            amount = self.amounts[source.name, package, language]
            amount.documents += 1
            amount.characters += sum(map(len, kept))


def build(packages, corpus_path, report_path):
    """Reads packages/<name>/…; writes a document a line to corpus_path and the amounts by package to report_path.

    A line is [source, language, [paragraph, …]]: a page, or one message of a catalog.
    """
    files = defaultdict(list)
    names = (
        sorted(entry.name for entry in packages.iterdir() if (entry / VERSION_FILE).exists())
        if packages.is_dir()
        else []
    )
    if not names:
        raise SystemExit(f"{packages} holds no packages: run the step fetch first")
    for package in names:
        for path in sorted((packages / package / "usr").rglob("*")):
            placed = path.is_file() and sources.place(package, path.relative_to(packages / package).as_posix())
            if placed:
                files[placed[0]].append((package, path, placed[1]))

    partial = corpus_path.with_name(corpus_path.name + ".part")
    with partial.open("w", encoding="utf-8") as output:
        corpus = Corpus(output)
        for source in sources.SOURCES:
            for package, path, kind in files[source]:
                try:
                    read_file(corpus, source, package, path, kind)
                except (OSError, UnicodeError, RecursionError, struct.error, etree.XMLSyntaxError) as error:
                    print(f"left out {path}: {error}", file=sys.stderr)
            print(f"{source.name}: {len(files[source])} files", flush=True)
    write_report(report_path, packages, corpus.amounts)
    os.replace(partial, corpus_path)


def read_file(corpus, source, package, path, kind):
    if kind != "catalog":
        corpus.add(source, package, kind, readers.read_page(path))
        return
    for english, spanish in readers.read_catalog(path):
        if len(english) >= settings.MIN_MESSAGE:
            corpus.add(source, package, "english", readers.message_paragraphs(english))
            corpus.add(source, package, "spanish", readers.message_paragraphs(spanish))


def write_report(path, packages, amounts):
    """What the model is made of: a row for each source, package and language, and the totals on standard output."""
    totals = defaultdict(Amount)
    with path.open("w", encoding="utf-8") as report:
        report.write("source\tpackage\tversion\tlanguage\tdocuments\tcharacters\n")
        for (source, package, language), amount in sorted(amounts.items()):
            version = (packages / package / VERSION_FILE).read_text().strip()
            report.write(f"{source}\t{package}\t{version}\t{language}\t{amount.documents}\t{amount.characters}\n")
            totals[language].documents += amount.documents
            totals[language].characters += amount.characters
    for language, total in sorted(totals.items()):
        print(f"{language}: {total.documents} documents, {total.characters / 1e6:.2f} million characters")
