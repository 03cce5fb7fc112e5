"""Which packages may be used: those whose own metadata names MIT, BSD, Apache-2.0, PSF or ISC and nothing else."""

import re

PERMISSIVE = {
    "MIT": r"MIT(-0)?( License)?|The MIT License( \(MIT\))?|MIT License.*|Expat.*|OSI Approved :: MIT.*",
    "BSD": r"(new |modified |revised |simplified |the )?BSD([- ]?\d[- ]clause)?([- ](new|simplified|revised))?( license)?|"
    r"(\d|two|three)[- ]clause (new |modified )?bsd( license)?|BSD-\d-Clause|0BSD|OSI Approved :: BSD.*|BSD License.*",
    "Apache-2.0": r"(the )?Apache([- ](software )?)?(license)?[- ,]*(version |v)?(2(\.0)?)?( license)?|Apache-2\.0|ALv2|"
    r"OSI Approved :: Apache Software License",
    "PSF": r"PSF(-2\.0)?( license)?|PSFL|Python Software Foundation( license)?|Python-2\.0(\.1)?|OSI Approved :: Python Software.*",
    "ISC": r"ISC( license)?( \(ISCL\))?|ISCL|OSI Approved :: ISC.*",
}
PERMISSIVE = {name: re.compile(f"({pattern})", re.I) for name, pattern in PERMISSIVE.items()}


def stated(meta):
    """The licence as the metadata state it: the expression, else the classifiers, else the first line of `License`."""
    if meta["License-Expression"]:
        return meta["License-Expression"]
    classified = [c.split("License :: ", 1)[1] for c in meta.get_all("Classifier", []) if c.startswith("License :: ")]
    exact = [c for c in classified if c != "OSI Approved"]
    return " AND ".join(exact) if exact else (meta["License"] or "").strip().split("\n")[0].strip().rstrip(".")


def permissive(meta):
    """The names of the licences, or `None` if any part of the statement is not on the list."""
    names = []
    parts = re.split(r" AND | OR |\s*/\s*|(?<=\d),? and ", stated(meta))
    for part in parts:
        name = next((n for n, pattern in PERMISSIVE.items() if pattern.fullmatch(part.strip()) or pattern.fullmatch(part.strip(" ()"))), None)
        if name is None:
            return None
        names.append(name)
    return " and ".join(dict.fromkeys(names))


def notice(rows):
    head = (
        "The weights in model/ were trained on the source of Python's standard library (PSF License Agreement, in\n"
        "LICENSE-PSF.txt) and on files of the packages below, from PyPI, whose metadata state the licence given. Each\n"
        "package's copyright is its authors'. Made by tools/nano/corpus.py; not edited by hand.\n\n"
    )
    rows = sorted(rows, key=lambda row: row[0].lower())
    width, wide = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    return head + "".join(f"{name:{width}}  {version:{wide}}  {licence}\n" for name, version, licence, _ in rows)
