"""What a model is and how it is kept: presets, manifests, and a store of versioned Hugging Face folders.

Importing this package, or any module of it, imports neither torch nor transformers: the server's API process uses it
to find a model.
"""
