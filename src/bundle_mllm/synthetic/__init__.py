"""Invented data sets whose best possible accuracy is known.

Knows nothing about models, tokenizers or training.
"""
