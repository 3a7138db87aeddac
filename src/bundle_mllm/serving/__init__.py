"""A model over HTTP: completions, reranking, items that come and go, and what users did with the answers."""
