"""Makes a private environment and says meanwhile what happens.

    python3 tools/environment.py DIRECTORY PIP_ARGUMENT...

The environment is made if it is not there; then pip installs into it. pip's own report is
hundreds of lines or, with ``--quiet``, a minute of silence: this shows a line a package, and
all of it only where pip fails. Runs on any Python 3, so that too old a one is told so.
"""

import os
import re
import subprocess
import sys

# What pip prints when it turns to something new -> what to tell.
_PHASES = (
    (r"Obtaining file:", "2/3 fetching packages: some 250 MB, unless pip has them"),
    (r"Requirement already satisfied: jaxsparse\[", "adding packages for the tests"),
    (r" *Building editable for jaxsparse.* started", "3/3 compiling the CPU kernels: a minute"),
    (r"Installing collected packages", "unpacking what was fetched"),
)
_WHEEL = re.compile(
    r" *(?:Processing|Downloading|Using cached) (?:\S*/)?"
    r"(?P<name>[\w.]+)-(?P<version>\d[\w.+!]*)(?:-\S+\.whl|\.tar\.gz)"
    r"(?: \((?P<size>[\d.]+ \wB)\)| .*)?$"
)


def main(directory, *arguments):
    if sys.version_info < (3, 11):  # noqa: UP036  this file is how one is told
        sys.exit(f"jaxsparse needs Python 3.11 or later, this is {sys.version.split()[0]}")
    if not os.path.exists(os.path.join(directory, "pyvenv.cfg")):
        say(f"1/3 making a private environment in {directory}")
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = os.path.join(directory, "bin", "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines = []
    with subprocess.Popen(pip, **options) as running:
        for line in running.stdout or ():
            lines.append(line)
            tell(line.rstrip())
    if running.returncode:
        sys.exit("".join(lines) + "\nthe environment is not ready: the lines above say why")


def tell(line):
    """Says in a line what a line of pip means to someone who waits, if anything."""
    for pattern, text in _PHASES:
        if re.match(pattern, line):
            say(text)
    found = _WHEEL.match(line)
    if found:
        size = f" ({found['size']})" if found["size"] else ""
        say(f"      {found['name']} {found['version']}{size}")


def say(text):
    print(text, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
