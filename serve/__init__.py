"""Text in, text out over HTTP, on LitServe. Importing this package loads nothing: every part is imported where it is used."""
