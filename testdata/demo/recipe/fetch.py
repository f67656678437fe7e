"""Step 1: downloads the Debian packages of packages.txt and keeps of each the files that sources.py names.

Runs on Debian 12, with apt's own verification of what it downloads. Packages that are there already are left alone, so
an interrupted run goes on where it stopped.
"""

import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import settings
import sources

COPYRIGHT = re.compile(r"usr/share/doc/[^/]*/copyright")
VERSION_FILE = "VERSION"


def pinned_packages():
    """{name: version} of packages.txt."""
    packages = {}
    for number, line in enumerate(settings.PACKAGES.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise SystemExit(
                f"{settings.PACKAGES}:{number}: a line holds a package and its version, and this one: {line!r}"
            )
        packages[words[0]] = words[1]
    return packages


def fetch(folder, names=()):
    """Fills folder/<package>/ for the named packages, or all of packages.txt."""
    pinned = pinned_packages()
    unknown = sorted(set(names) - pinned.keys())
    if unknown:
        raise SystemExit(f"not in {settings.PACKAGES.name}: {' '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or pinned:
        if (folder / name).exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            archive = download(name, pinned[name], scratch)
            unpacked = Path(scratch) / name
            files = unpack(name, archive, unpacked)
            version = run("dpkg-deb", "--field", archive, "Version").strip()
            if version != pinned[name]:
                print(f"{name}: version {pinned[name]} is no longer in the archive; took {version}")
            (unpacked / VERSION_FILE).write_text(version + "\n")
            shutil.move(unpacked, folder / name)
        print(f"{name} {version}: {files} files", flush=True)


def run(*command, cwd=None):
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename} is missing: fetch runs on Debian 12, or in a container of it") from error
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr.strip()}")
    return done.stdout


def download(name, version, folder):
    """Path of the downloaded .deb. The archive drops a version when an update replaces it; then the update is taken."""
    offered = re.findall(r"^Version: (.*)$", run("apt-cache", "show", name), re.MULTILINE)
    wanted = f"{name}={version}" if version in offered else name
    run("apt-get", "--quiet", "--quiet", "download", wanted, cwd=folder)
    (archive,) = Path(folder).glob("*.deb")
    return archive


def unpack(name, archive, target):
    """Copies the wanted files of a .deb and returns their number; links and anything else are left out."""
    target.mkdir()
    count = 0
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as packed,
        tarfile.open(fileobj=packed.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = member.name.removeprefix("./")
            is_text = sources.place(name, path) is not None
            if member.isfile() and (is_text or COPYRIGHT.fullmatch(path)):
                tar.extract(member, target, filter="data")
                count += is_text
    if packed.returncode != 0:
        raise SystemExit(f"{archive}: dpkg-deb could not unpack it")
    return count
