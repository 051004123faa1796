"""Text in, text out over HTTP, on LitServe. Importing this package loads nothing else."""
