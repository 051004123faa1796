"""How good is this text, and is this model healthy? The score, its reference and their proofs. See docs/quality.md.

While serving: score.py (and what it imports: features, surprise, reference, lexicon, words; Python and numpy only).
Offline: fit, validate, diagnose and the command line; they load torch and scikit-learn where they need them.
"""
