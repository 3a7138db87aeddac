"""Other formats of models: official checkpoints in, stock language models out.

Knows nothing about training or the Hub.
"""
