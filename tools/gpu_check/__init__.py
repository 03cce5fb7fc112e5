"""Tests and benches on a GPU machine with neither Rust nor a network. Python 3.9 and its standard library.

pack.py     builds and packs, where there is Rust
stages.py   what runs there, in order of value
run.py      runs it: deadlines, results that are never lost, where it goes on
summary.py  the table at the end
command.py  arguments
"""
