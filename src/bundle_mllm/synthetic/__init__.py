"""Synthetic catalogs: invented items, users and bundles, drawn by a known process, so the best accuracy is known, too.

Knows nothing about models, tokenizers or training.
"""
