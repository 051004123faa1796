"""The engine: token ids in, token ids out. Knows nothing of text, HTTP, metrics or processes.

Importing this package imports no torch: only torch_runner, sampling and reference do, and the
loader reaches for them when the torch runner is chosen.
"""
