"""The corpus of crates/rigel-nano/model, cut into training documents: the running interpreter's standard library, and files of PyPI
packages as corpus.py wrote them.

Everything is derived from `sysconfig.get_paths()["stdlib"]`, corpus.jsonl and a seed. A document is a plain string in
which StarCoder2's special tokens are written literally, since the tokenizer splits on them first.
"""

import ast
import hashlib
import itertools
import json
import pickle
import random
import re
import sysconfig
import textwrap
from pathlib import Path

# Tables, generated files and tests teach a four-million-parameter model little about writing functions.
EXCLUDED_DIRS = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__phello__", "__pycache__"}
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_PERCENT = 6

EOT, FILE_SEP, REPO_NAME = "<|endoftext|>", "<file_sep>", "<repo_name>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"
SYSTEM = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate "
    "and reliable responses to user instructions.\n\n"
)

# Share of training tokens per kind of document, and per group of files within a kind.
SHARES = {"plain": 0.44, "function": 0.20, "infill": 0.17, "instruct": 0.14, "repo": 0.05}
GROUPS = {"library": 0.25, "textbook": 0.12, "general": 0.63}
FUNCTION_GROUPS = {"library": 0.20, "textbook": 0.45, "general": 0.35}
MAX_FUNCTION, MAX_PARAGRAPH = 900, 240  # characters of a function, and of the docstring's first paragraph
FRESH_ROWS = 0.25  # share of training rows that start with a document, as a prompt does


def held_out(path):
    """Whole files are held out, by a hash of their path, so that the split survives a change of the corpus."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_library():
    """Returns `(train, held)`: two dicts from the path inside the library to the source text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train, held = {}, {}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if EXCLUDED_DIRS & set(path.parts) or any(part.startswith(EXCLUDED_PREFIXES) for part in path.parts):
            continue
        try:
            text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
            ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        if len(text) > 200:
            (held if held_out(path.as_posix()) else train)[path.as_posix()] = text
    return train, held


class Function:
    """One function or method, dedented, without decorators: `head` is its `def` line(s) and docstring, `bare` the source
    without the docstring."""

    def __init__(self, node, lines):
        body = node.body
        self.name = node.name
        self.arguments = ast.unparse(node.args)
        self.doc = ast.get_docstring(node)
        self.source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip() + "\n"
        first = body[1].lineno if self.doc and len(body) > 1 else body[0].lineno
        own = self.source.splitlines(keepends=True)
        self.head_lines = first - node.lineno
        self.head = "".join(own[: self.head_lines])
        signature = "".join(own[: body[0].lineno - node.lineno])
        self.bare = signature + "".join(own[self.head_lines :]).lstrip("\n")

    @property
    def method(self):
        return self.arguments.split(",")[0] in ("self", "cls", "mcs")


def functions(text):
    """All functions of a file whose body is more than a docstring and starts on a line of its own."""
    lines = text.split("\n")
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        has_doc = ast.get_docstring(node) is not None
        if has_doc and len(node.body) == 1 or node.body[0].lineno == node.lineno:
            continue
        function = Function(node, lines)
        try:  # a string with lines left of the indentation does not survive the dedent
            ast.parse(function.source)
        except SyntaxError:
            continue
        found.append(function)
    return found


def instruction(function, rng=None):
    """The user's words for a function: its signature, and the first paragraph of its docstring if it has one."""
    signature = f"{function.name}({function.arguments})"
    if not function.doc:
        said = function.name.strip("_").replace("_", " ")
        return rng.choice((f"Write a Python function `{signature}`.", f"Write a Python function for {said}."))
    doc = " ".join(function.doc.split("\n\n")[0].split())
    forms = (
        f"Write a Python function `{signature}`. {doc}",
        f"Write a Python function `{function.name}`. {doc}",
        f"Write a function in Python.\n{doc}",
        f"Write a Python function that {doc[:1].lower()}{doc[1:]}",
    )
    return rng.choices(forms, weights=(5, 2, 2, 1))[0] if rng else forms[0]


def instruct_prompt(user):
    """The instruct chat template rendered for one user turn."""
    return f"{EOT}{SYSTEM}### Instruction\n{user}\n\n### Response\n"


def code_lines(text):
    """Indices of lines worth asking for: statements, not blanks, comments or lone brackets."""
    return [i for i, line in enumerate(text) if re.search(r"[A-Za-z]", line) and not line.lstrip().startswith("#")]


def line_infill(lines, at, before, after):
    """`(prefix, middle, suffix)` that asks for line `at` after its indentation, with its neighbours as context."""
    indent = len(lines[at]) - len(lines[at].lstrip())
    prefix = "".join(line + "\n" for line in lines[max(0, at - before) : at]) + lines[at][:indent]
    suffix = "\n" + "".join(line + "\n" for line in lines[at + 1 : at + 1 + after])
    return prefix, lines[at][indent:].rstrip(), suffix


def infill_document(prefix, middle, suffix):
    return f"{FIM_PREFIX}{prefix}{FIM_SUFFIX}{suffix}{FIM_MIDDLE}{middle}{FILE_SEP}"


def pieces(text, size=2200):
    """Cuts a file before functions, methods and classes, into pieces of about `size` characters. A longer block is
    cut between lines."""
    out, piece = [], ""
    blocks = re.split(r"(?m)^(?=(?:    )?(?:@|def |async def )|class )", text)
    for block in (part for block in blocks for part in re.findall(rf"(?s).{{1,{size}}}(?:\n|\Z)|.+?(?:\n|\Z)", block)):
        if piece and len(piece) + len(block) > size:
            out.append(piece)
            piece = ""
        piece += block
    return out + [piece] if piece else out


def read_packages(corpus):
    """The rows of corpus.jsonl as `{group: {path: text}}`; a path starts with the package's name."""
    groups = {}
    with corpus.open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            groups.setdefault(row["group"], {})[f"{row['package']}/{row['path']}"] = row["text"]
    return groups


def deck_of(files):
    """The pieces of the files, and their short functions."""
    short = [f for text in files.values() for f in functions(text) if 40 < len(f.source) < MAX_FUNCTION]
    return {"plain": [(path, piece) for path, text in files.items() for piece in pieces(text)], "function": short}


class Corpus:
    """All files by group, with their pieces and functions."""

    def __init__(self, groups):
        self.groups = groups
        self.paths = {g: [p for p, text in files.items() if len(text) < 60_000] for g, files in groups.items()}
        self.weights = {g: [len(groups[g][p]) for p in paths] for g, paths in self.paths.items()}
        self.decks = {}
        for group, files in groups.items():
            deck = deck_of(files)
            self.decks["plain", group], self.decks["function", group] = deck["plain"], deck["function"]
            self.decks["instruct", group] = [f for f in deck["function"] if self.asked_for(f, group)]

    @staticmethod
    def asked_for(function, group):
        if function.doc:
            return len(function.doc.split("\n\n")[0]) < MAX_PARAGRAPH and (group == "library" or not function.method)
        return group == "textbook" and not function.method and not function.name.startswith("_")


def load(corpus):
    """`(Corpus, held)`, kept beside `corpus` in a pickle, since parsing everything takes minutes."""
    cached = corpus.with_suffix(".pickle")
    train, held = read_library()
    if not cached.exists() or cached.stat().st_mtime < max(corpus.stat().st_mtime, Path(__file__).stat().st_mtime):
        cached.write_bytes(pickle.dumps(Corpus({"library": train, **read_packages(corpus)})))
    return pickle.loads(cached.read_bytes()), held


class Documents:
    """An endless seeded stream of training documents in the proportions of `SHARES`."""

    def __init__(self, corpus, seed):
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.hands = {}
        self.emitted = dict.fromkeys(SHARES, 0)

    def state(self):
        return {"rng": self.rng.getstate(), "hands": self.hands, "emitted": self.emitted}

    def restore(self, state):
        self.rng.setstate(state["rng"])
        self.hands, self.emitted = state["hands"], state["emitted"]

    def group(self, kind):
        shares = GROUPS if kind == "plain" else FUNCTION_GROUPS
        names = [g for g in shares if g in self.corpus.groups]
        return self.rng.choices(names, [shares[g] for g in names])[0]

    def draw(self, kind):
        """Deals from a shuffled deck, so that every card is seen once before any is seen twice."""
        key = (kind, self.group(kind))
        hand = self.hands.setdefault(key, [])
        if not hand:
            hand.extend(range(len(self.corpus.decks[key])))
            self.rng.shuffle(hand)
        return self.corpus.decks[key][hand.pop()]

    def infill(self):
        """Mostly one line, also its tail, a span of characters, or a few lines; the context stays short because
        the attention window is."""
        rng, code = self.rng, []
        while not code:
            group = self.group("plain")
            path = rng.choices(self.corpus.paths[group], cum_weights=self.cumulative(group))[0]
            lines = self.corpus.groups[group][path].split("\n")
            code = code_lines(lines)
        at = rng.choice(code)
        prefix, middle, suffix = line_infill(lines, at, rng.randint(2, 14), rng.randint(1, 6))
        form = rng.random()
        if form < 0.20:  # the tail of the line, as at a cursor
            cut = rng.randrange(len(middle))
            prefix, middle = prefix + middle[:cut], middle[cut:]
        elif form < 0.35:  # a span inside the line
            low, high = sorted(rng.randrange(len(middle) + 1) for _ in range(2))
            prefix, middle, suffix = prefix + middle[:low], middle[low:high], middle[high:] + suffix
        elif form < 0.50:  # this line and the next few
            more = suffix[1:].split("\n")
            count = rng.randint(1, 3)
            middle, suffix = "\n".join([middle, *more[:count]]), "\n" + "\n".join(more[count:])
        return path, infill_document(prefix, middle, suffix)

    def cumulative(self, group):
        sums = self.__dict__.setdefault("sums", {})
        if group not in sums:
            sums[group] = list(itertools.accumulate(self.corpus.weights[group]))
        return sums[group]

    def source(self, function):
        """Half of the documented functions lose their docstring, so that the code is learnt as well as the prose."""
        return function.bare if function.doc and self.rng.random() < 0.5 else function.source

    def document(self, kind):
        rng = self.rng
        if kind == "plain":
            return self.draw("plain")[1] + EOT
        if kind == "function":
            return self.source(self.draw("function")) + EOT
        if kind == "instruct":
            function = self.draw("instruct")
            return f"{instruct_prompt(instruction(function, rng))}```python\n{self.source(function)}```{EOT}"
        if kind == "infill":
            return self.infill()[1] + EOT
        # Repository form: one piece as context, then either another piece or an infill.
        path, text = self.draw("plain")
        head = f"{REPO_NAME}{path.split('/')[0]}{FILE_SEP}{path}\n{text}{FILE_SEP}"
        if rng.random() < 0.5:
            path, infill = self.infill()
            return head + infill.replace(FIM_PREFIX, f"{FIM_PREFIX}{path}\n", 1) + EOT
        path, text = self.draw("plain")
        return f"{head}{path}\n{text}{EOT}"

    def tokens(self, tokenizer):
        """The ids of the next document, always of the kind that is furthest below its share."""
        kind = min(SHARES, key=lambda k: self.emitted[k] / SHARES[k])
        ids = tokenizer.encode(self.document(kind)).ids
        self.emitted[kind] += len(ids)
        return ids


class Rows:
    """Packs documents into `rows` x (`length` + 1) ids. Each row takes whole documents in turn, so that a batch mixes
    kinds; the last id of a row is the first input of its next one, so that no target is lost at the seam."""

    def __init__(self, documents, tokenizer, rows, length):
        self.documents, self.tokenizer, self.length = documents, tokenizer, length
        self.buffers = [[] for _ in range(rows)]

    def state(self):
        return {"documents": self.documents.state(), "buffers": self.buffers}

    def restore(self, state):
        self.documents.restore(state["documents"])
        self.buffers = state["buffers"]

    def next(self):
        for buffer in self.buffers:
            if self.documents.rng.random() < FRESH_ROWS:
                buffer.clear()
            while len(buffer) < self.length + 1:
                buffer.extend(self.documents.tokens(self.tokenizer))
        block = [buffer[: self.length + 1] for buffer in self.buffers]
        for buffer in self.buffers:
            del buffer[: self.length]
        return block
