"""Training: retriever, stage one, stage two, and the combination of ranker and retriever."""
