"""Scores, metrics and comparisons of models on question files and on whole catalogs."""
