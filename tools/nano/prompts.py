"""Prompts whose greedy completion is run against a stated test."""

import subprocess
import sys

SECONDS = 10

PROMPTS = {
    "def fibonacci(n):": "assert [fibonacci(n) for n in range(1, 11)] == [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]",
    "def is_prime(n):": "assert [n for n in range(1, 30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]",
    "def reverse(s):": "assert ''.join(reverse('nano')) == 'onan' and ''.join(reverse('')) == ''",
    "def reverse_string(s):": "assert reverse_string('nano') == 'onan' and reverse_string('') == ''",
    "def is_palindrome(s):": "assert is_palindrome('level') and not is_palindrome('levels')",
    "def factorial(n):": "assert [factorial(n) for n in (0, 1, 2, 3, 5, 10)] == [1, 1, 2, 6, 120, 3628800]",
    "def gcd(a, b):": "assert (gcd(12, 18), gcd(7, 5), gcd(9, 0)) == (6, 1, 9)",
    "def binary_search(arr, target):": "assert [binary_search([1, 3, 5, 8], x) for x in (1, 5, 8)] == [0, 2, 3]",
}


def passes(source, test):
    """Runs the program and its test in another interpreter, in an empty environment, for at most `SECONDS`."""
    program = f"import math\n{source}\n{test}\n"
    try:
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=SECONDS, env={})
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run(model, stops):
    """The completions, up to a stop token, and whether each passes."""
    rows = []
    for prompt, test in PROMPTS.items():
        output, ended = model.greedy(prompt, 128, stops)
        rows.append({"prompt": prompt, "output": output, "ended": ended, "test": test,
                     "passes": ended and passes(prompt + output, test)})
    return rows
