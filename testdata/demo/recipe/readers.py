"""From files to paragraphs: DocBook, Mallard and HTML pages, and catalogs of translated messages (gettext and Qt).

Every reader gives plain text without markup; what is good enough to learn from is decided in corpus.py.
"""

import html
import html.entities
import re
import struct

import polib
from lxml import etree

# Elements that flow within a sentence. Any other element ends the paragraph before it and behind it.
INLINE = frozenset(
    # HTML
    "a abbr acronym b bdi big cite code dfn em font i kbd label mark q s samp small span strong sub tt u var "
    # DocBook
    "abbrev accel action application citetitle classname command computeroutput constant database emphasis envar "
    "filename firstterm foreignphrase function glossterm guibutton guiicon guilabel guimenu guimenuitem guisubmenu "
    "interface keycap keycode keycombo keysym link literal menuchoice mousebutton option optional parameter phrase "
    "productname prompt quote replaceable subscript symbol systemitem token trademark type ulink userinput varname "
    # Mallard
    "app cmd file gui guiseq input key keyseq output sys".split()
)

# Elements whose content is no prose: code, figures, navigation, and who wrote the page when.
LEFT_OUT = frozenset(
    "head script style nav header footer aside form button svg math pre sup noscript "
    "screen programlisting literallayout synopsis cmdsynopsis funcsynopsis footnote superscript shortcut indexterm "
    "remark mediaobject inlinemediaobject screenshot author authorgroup othercredit copyright legalnotice revhistory "
    "keywordset media comment credit license years revision".split()
)

# Those of them that stand within a sentence, which goes on behind them.
LEFT_OUT_OF_SENTENCES = frozenset("indexterm footnote sup superscript remark comment".split())

# Elements whose children are steps of one action, and what stands between them in text.
SEQUENCES = {"menuchoice": " ", "guiseq": " ", "keycombo": "+", "keyseq": "+"}

# Stands for a reference whose text is made only when the page is shown; such a paragraph is of no use.
UNRESOLVED = "<reference>"


def read_page(path):
    """Paragraphs of a DocBook, Mallard or HTML file."""
    data = path.read_bytes()
    root = parse_html(data) if path.suffix == ".html" else parse_xml(data.decode("utf-8", "replace"))
    return paragraphs(root) if root is not None else []


def parse_html(data):
    # Without a declared charset libxml2 would take Latin-1; the few pages that declare none are UTF-8.
    encoding = None if b"charset" in data[:2000].lower() else "utf-8"
    return etree.fromstring(data, etree.HTMLParser(encoding=encoding, huge_tree=True))


def parse_xml(text):
    # The document types and their entities are not at hand: the declaration goes, and entities become their text.
    text = re.sub(r"<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!DOCTYPE[^\[>]*(\[.*?\]\s*)?>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"&([A-Za-z][\w.-]*);", entity_text, text)
    return etree.fromstring(
        text.encode(), etree.XMLParser(recover=True, huge_tree=True, resolve_entities=False, no_network=True)
    )


def entity_text(match):
    """The text of &name;: a character, or for the names of programs and keys that KDE declares, the name itself."""
    name = match.group(1)
    if name in ("amp", "lt", "gt", "quot", "apos"):
        return match.group(0)
    if f"{name};" in html.entities.html5:
        return html.entities.html5[f"{name};"]
    if name in ("kde", "url", "html", "http", "ftp"):
        return name.upper()
    return name[0].upper() + re.sub(r"[.-]", " ", name[1:])


def paragraphs(root):
    found, open_text = [], []

    def end_paragraph():
        text = "".join(open_text)
        open_text.clear()
        if text.strip():
            found.append(text)

    def walk(element, in_sequence):
        if isinstance(element.tag, str):  # not a comment or processing instruction
            name = etree.QName(element).localname.lower()
            if name in LEFT_OUT:
                if name not in LEFT_OUT_OF_SENTENCES:
                    end_paragraph()
            elif name == "xref" or (
                name == "link" and "xref" in element.attrib and not element.text and not len(element)
            ):
                open_text.append(UNRESOLVED)
            else:
                if name not in INLINE:
                    end_paragraph()
                open_text.append(element.text or "")
                for i, child in enumerate(element):
                    if i > 0:
                        open_text.append(SEQUENCES.get(name, ""))
                    walk(child, name in SEQUENCES)
                if name not in INLINE:
                    end_paragraph()
        tail = element.tail or ""
        # Between the steps of a sequence there is mostly layout, which would come on top of the separator.
        if not in_sequence or tail.strip():
            open_text.append(tail)

    walk(root, False)
    end_paragraph()
    return found


def read_catalog(path):
    """(English, Spanish) pairs of messages."""
    return read_qt_catalog(path.read_bytes()) if path.suffix == ".qm" else read_gettext_catalog(path)


def read_gettext_catalog(path):
    return [(entry.msgid, entry.msgstr) for entry in polib.mofile(str(path)) if entry.msgstr]


def read_qt_catalog(data):
    """Messages of a .qm file: sections of (tag, length, bytes), and in one of them fields of the same form."""
    MESSAGES = 0x69
    END, TRANSLATION, OBSOLETE, SOURCE = 1, 3, 5, 6
    NO_TEXT = 0xFFFFFFFF
    position, pairs = 16, []  # behind the magic number
    while position + 5 <= len(data):
        tag, length = struct.unpack_from(">BI", data, position)
        section = data[position + 5 : position + 5 + length]
        position += 5 + length
        if tag != MESSAGES:
            continue
        source, translation, at = "", "", 0
        while at < len(section):
            field = section[at]
            at += 1
            if field == END:
                pairs.append((source, translation))
                source, translation = "", ""
            elif field == OBSOLETE:
                at += 4
            else:
                (size,) = struct.unpack_from(">I", section, at)
                at += 4
                if size == NO_TEXT:
                    continue
                value = section[at : at + size]
                at += size
                if field == SOURCE:
                    source = value.decode("utf-8", "replace")
                elif field == TRANSLATION:
                    translation = value.decode("utf-16-be", "replace")
    return pairs


def message_paragraphs(message):
    """A program message without its markup and its underlined letters."""
    message = re.sub(r"<br\s*/?>|</p>", "\n\n", message.replace("\\n", "\n"), flags=re.IGNORECASE)
    message = re.sub(r"<[^<>]{1,60}>", "", message)
    message = re.sub(r"&(?=[A-Za-z])(?!\w+;)", "", message)
    if message.count("_") == 1:
        message = message.replace("_", "")
    return re.split(r"\n\s*\n|\n(?=[-*•])", html.unescape(message))
