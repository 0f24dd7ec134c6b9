"""Models that turn texts into vectors and scores: embeddings, reranking, masked language models."""
