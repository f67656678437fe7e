"""Where the texts come from: which files of which Debian packages, in which format, under which licence.

`fetch` unpacks exactly the files named here (and each package's copyright file, which is the binding statement of its
licence); `corpus` reads them in this order, so that of two equal paragraphs the one named first stays.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Source:
    name: str
    licence: str
    packages: str  # shell pattern of package names
    # Regular expressions of paths in the package. A catalog holds each message in both languages.
    english: str | None = None
    spanish: str | None = None
    catalog: str | None = None

    def language_of(self, package, path):
        """ "english", "spanish", "catalog", or None for a file that is none of this source's."""
        if fnmatchcase(package, self.packages):
            for kind in ("english", "spanish", "catalog"):
                pattern = getattr(self, kind)
                if pattern is not None and re.fullmatch(pattern, path):
                    return kind
        return None


CATALOG = r".*/es/LC_MESSAGES/[^/]*\.mo"

SOURCES = (
    Source(
        "GIMP manual",
        "GFDL-1.2 or later",
        "gimp-help-*",
        english=r"usr/share/gimp/2\.0/help/en/[^/]*\.html",
        spanish=r"usr/share/gimp/2\.0/help/es/[^/]*\.html",
    ),
    Source(
        "LibreOffice help",
        "MPL-2.0",
        "libreoffice-help-*",
        english=r"usr/share/libreoffice/help/en-US/text/.*\.html",
        spanish=r"usr/share/libreoffice/help/es/text/.*\.html",
    ),
    Source(
        "GNOME and MATE help",
        "CC-BY-SA-3.0, GFDL-1.1 or later, or GPL-2 or later, by program",
        "*",
        english=r"usr/share/(help/C/.*\.(page|docbook|xml)|gnome/help/[^/]*/C/[^/]*\.xml)",
        spanish=r"usr/share/(help/es/.*\.(page|docbook|xml)|gnome/help/[^/]*/es/[^/]*\.xml|genius/help/es/genius\.xml)",
    ),
    Source(
        "KDE handbooks",
        "GFDL-1.2 or later",
        "*",
        english=r"usr/share/doc/(kde/)?HTML/en/.*\.docbook",
        spanish=r"usr/share/doc/(kde/)?HTML/es/.*\.docbook",
    ),
    Source(
        "Debian Administrator's Handbook",
        "GPL-2 or later, or CC-BY-SA-3.0 or later",
        "debian-handbook",
        english=r"usr/share/doc/debian-handbook/html/en-US/[^/]*\.html",
        spanish=r"usr/share/doc/debian-handbook/html/es-ES/[^/]*\.html",
    ),
    Source(
        "Debian Reference",
        "GPL-2 or later",
        "debian-reference-*",
        english=r"usr/share/debian-reference/ch[^/]*\.en\.html",
        spanish=r"usr/share/debian-reference/ch[^/]*\.es\.html",
    ),
    Source(
        "Debian Edu manual",
        "GPL-2 or later",
        "debian-edu-doc-*",
        english=r"usr/share/doc/debian-edu-doc-en/[^/]*\.html",
        spanish=r"usr/share/doc/debian-edu-doc-es/[^/]*\.html",
    ),
    Source(
        "Debian installation guide",
        "GPL-2",
        "installation-guide-*",
        english=r"usr/share/doc/installation-guide-amd64/en/[^/]*\.html",
        spanish=r"usr/share/doc/installation-guide-amd64/es/[^/]*\.html",
    ),
    Source(
        "FreedomBox manual",
        "CC-BY-SA-4.0",
        "freedombox-doc-es",
        spanish=r"usr/share/freedombox/manual/es/[^/]*\.part\.html",
    ),
    Source(
        "KiCad manuals",
        "GPL-3 or later, or CC-BY-3.0 or later",
        "kicad-doc-*",
        english=r"usr/share/doc/kicad/help/en/[^/]*\.html",
        spanish=r"usr/share/doc/kicad/help/es/[^/]*\.html",
    ),
    Source(
        "aptitude manual",
        "GPL-2 or later",
        "aptitude-doc-*",
        english=r"usr/share/doc/aptitude/html/en/[^/]*\.html",
        spanish=r"usr/share/doc/aptitude/html/es/[^/]*\.html",
    ),
    Source(
        "Debian New Maintainers' Guide",
        "GPL-2 or later",
        "maint-guide*",
        english=r"usr/share/doc/maint-guide/html/[^/]*\.en\.html",
        spanish=r"usr/share/doc/maint-guide-es/html/[^/]*\.es\.html",
    ),
    Source(
        "Debian Policy Manual",
        "GPL-2 or later",
        "debian-policy",
        english=r"usr/share/doc/debian-policy/policy\.html/[^/]*\.html",
    ),
    Source("Battle for Wesnoth", "GPL-2 or later", "wesnoth-*", catalog=CATALOG),
    Source("Freeciv", "GPL-2 or later", "freeciv-data", catalog=CATALOG),
    Source("Widelands", "GPL-2 or later", "widelands-data", catalog=CATALOG),
    Source("LibreOffice messages", "MPL-2.0", "libreoffice-l10n-es", catalog=CATALOG),
    Source("other programs' messages", "GPL-2 or later, or as the program", "*", catalog=CATALOG),
    Source(
        "Stellarium messages",
        "GPL-2 or later",
        "stellarium-data",
        # The catalog of planetary features is a list of names.
        catalog=r"(?!.*planetary).*/es\.qm",
    ),
)


def place(package, path):
    """(source, "english" | "spanish" | "catalog") of a file of a package, or None."""
    for source in SOURCES:
        kind = source.language_of(package, path)
        if kind is not None:
            return source, kind
    return None
