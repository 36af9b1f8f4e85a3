"""Tables and documents to token ids, and token ids to batches of few shapes."""
