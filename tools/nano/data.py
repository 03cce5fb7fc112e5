"""The corpus of models/nano: the running interpreter's standard library, cut into training documents.

Everything is derived from `sysconfig.get_paths()["stdlib"]` and a seed; nothing is downloaded. A document is a
plain string in which StarCoder2's special tokens are written literally, since the tokenizer splits on them first.
"""

import ast
import hashlib
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

# Share of training tokens per kind of document.
SHARES = {"plain": 0.42, "function": 0.08, "infill": 0.28, "instruct": 0.16, "repo": 0.06}


def held_out(path):
    """Whole files are held out, by a hash of their path, so that the split survives a change of the corpus."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_corpus():
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
    """One function or method, dedented, without decorators: `head` is its `def` line(s) and docstring."""

    def __init__(self, node, lines):
        body = node.body
        self.name = node.name
        self.arguments = ast.unparse(node.args)
        self.doc = ast.get_docstring(node)
        self.source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip() + "\n"
        first = body[1].lineno if self.doc and len(body) > 1 else body[0].lineno
        self.head_lines = first - node.lineno
        self.head = "".join(self.source.splitlines(keepends=True)[: self.head_lines])


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
    """The user's words for a documented function: its signature and the first paragraph of its docstring."""
    doc = " ".join(function.doc.split("\n\n")[0].split())
    signature = f"{function.name}({function.arguments})"
    forms = (
        f"Write a Python function `{signature}`. {doc}",
        f"Write a Python function `{function.name}`. {doc}",
        f"Write a function in Python.\n{doc}",
    )
    return rng.choices(forms, weights=(6, 2, 2))[0] if rng else forms[0]


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


class Documents:
    """An endless seeded stream of training documents in the proportions of `SHARES`."""

    def __init__(self, train, seed):
        self.rng = random.Random(seed)
        self.paths = sorted(train)
        self.files = {path: train[path].split("\n") for path in self.paths}
        self.weights = [len(train[path]) for path in self.paths]
        self.code = {path: code_lines(self.files[path]) for path in self.paths}
        self.paths_with_code = [p for p in self.paths if self.code[p]]
        self.code_weights = [len(self.code[p]) for p in self.paths_with_code]
        short = [f for path in self.paths for f in functions(train[path]) if 60 < len(f.source) < 1100]
        self.decks = {
            "plain": [(path, piece) for path in self.paths for piece in pieces(train[path])],
            "function": short,
            "instruct": [f for f in short if f.doc and len(f.doc.split("\n\n")[0]) < 240],
        }
        self.hands = {kind: [] for kind in self.decks}
        self.emitted = dict.fromkeys(SHARES, 0)

    def draw(self, kind):
        """Deals from a shuffled deck, so that every card is seen once before any is seen twice."""
        hand = self.hands[kind]
        if not hand:
            hand.extend(self.decks[kind])
            self.rng.shuffle(hand)
        return hand.pop()

    def infill(self):
        """Mostly one line, also its tail, a span of characters, or a few lines; the context stays short because
        the attention window is."""
        rng = self.rng
        path = rng.choices(self.paths_with_code, self.code_weights)[0]
        lines, at = self.files[path], rng.choice(self.code[path])
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

    def document(self, kind):
        rng = self.rng
        if kind == "plain":
            return self.draw("plain")[1] + EOT
        if kind == "function":
            return self.draw("function").source + EOT
        if kind == "instruct":
            function = self.draw("instruct")
            return f"{instruct_prompt(instruction(function, rng))}```python\n{function.source}```{EOT}"
        if kind == "infill":
            return self.infill()[1] + EOT
        # Repository form: one piece as context, then either another piece or an infill.
        path, text = self.draw("plain")
        head = f"{REPO_NAME}python/cpython{FILE_SEP}Lib/{path}\n{text}{FILE_SEP}"
        if rng.random() < 0.5:
            path, infill = self.infill()
            return head + infill.replace(FIM_PREFIX, f"{FIM_PREFIX}Lib/{path}\n", 1) + EOT
        path, text = self.draw("plain")
        return f"{head}Lib/{path}\n{text}{EOT}"

    def token_stream(self, tokenizer):
        """Yields lists of token ids, always of the kind that is furthest below its share."""
        while True:
            kind = min(SHARES, key=lambda k: self.emitted[k] / SHARES[k])
            ids = tokenizer.encode(self.document(kind)).ids
            self.emitted[kind] += len(ids)
            yield ids


def blocks(stream, rows, length):
    """Packs a stream of token lists into `rows` x `length` lists of ids. Each row takes whole documents from the
    stream in turn, so that a batch mixes kinds."""
    buffers = [[] for _ in range(rows)]
    while True:
        for buffer in buffers:
            while len(buffer) < length:
                buffer.extend(next(stream))
        yield [buffer[:length] for buffer in buffers]
        for buffer in buffers:
            # The last id of a row is the first input of its next one: no target is lost at the seam.
            del buffer[: length - 1]
