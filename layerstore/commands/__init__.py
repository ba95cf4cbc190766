"""What each command does, by subject: arguments to `Store`, results to standard output.

Each module has a function `add`, which tells the parser its commands; `layerstore.cli` lists them.
"""
