"""Finds HumanEval's and MBPP's problems in a text, so that training never sees them.

The folder has `evalplus-starcoder2-instruct.jsonl` (prompts of both) and `sanitized-mbpp.json` (MBPP's texts and
reference solutions). A text is refused if it has a problem's statement (ten words of a docstring in a row, or the whole
statement if it is shorter but has at least five), the signature of a HumanEval function with a telling name, or a
function whose body is a reference solution's.
"""

import ast
import json
import re

WORDS, MIN_WORDS = 10, 5
ASKS = re.compile(r"^write (a|an)?\s*(python )?(function|program)\s*(in python )?(to|that|which)?\s*", re.I)


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def bodies(source):
    """The functions' bodies in one spelling, without docstrings; those of a line or two say nothing."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            start = 1 if ast.get_docstring(node) is not None else 0
            body = "\n".join(ast.unparse(statement) for statement in node.body[start:])
            if len(body) > 60:
                yield body


class Benchmarks:
    def __init__(self, folder):
        self.grams, self.signatures, self.solutions = {}, {}, {}
        for line in (folder / "evalplus-starcoder2-instruct.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            task = row["prompt"].split("### Instruction\n")[1].split("### Response")[0]
            if row["task_id"].startswith("HumanEval"):
                self.add_humaneval(row["task_id"], task)
            else:
                self.add_statement(row["task_id"], task.split("Your code should pass")[0])
        for row in json.loads((folder / "sanitized-mbpp.json").read_text(encoding="utf-8")):
            self.add_statement(f"Mbpp/{row['task_id']}", row["prompt"])
            for body in bodies(row["code"]):
                self.solutions[body] = f"Mbpp/{row['task_id']}"

    def add_humaneval(self, task, text):
        source = re.search(r"```python\n(.*?)```", text, re.S)[1]
        function = [n for n in ast.walk(ast.parse(source + "\n    pass\n")) if isinstance(n, ast.FunctionDef)][-1]
        if function.name.count("_") >= 2:
            self.signatures[function.name + "(" + ast.unparse(function.args)] = task
        doc = re.split(r">>>|(?i:examples?:)|(?i:for example)", ast.get_docstring(function) or "")[0]
        self.add_statement(task, doc)

    def add_statement(self, task, text):
        said = words(ASKS.sub("", text.strip()))
        size = min(WORDS, len(said))
        for i in range(len(said) - size + 1):
            gram = said[i : i + size]
            if sum(word.isalpha() for word in gram) >= MIN_WORDS:  # rows of numbers are anybody's
                self.grams.setdefault(" ".join(gram[:MIN_WORDS]), []).append((gram, task))

    def found(self, text):
        """The kind of find as a reason for refusal, or `None`."""
        said = words(text)
        for i in range(len(said) - MIN_WORDS + 1):
            for gram, task in self.grams.get(" ".join(said[i : i + MIN_WORDS]), ()):
                if said[i : i + len(gram)] == gram:
                    return self.reason(task, "statement")
        for signature, task in self.signatures.items():
            if signature.split("(")[0] in text and "def " + signature in text:
                return self.reason(task, "signature")
        for body in bodies(text):
            if body in self.solutions:
                return self.reason(self.solutions[body], "solution")
        return None

    @staticmethod
    def reason(task, kind):
        return f"{task.split('/')[0]}: a problem's {kind}"
