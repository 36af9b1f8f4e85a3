"""New tokens from a language model, and the cache of the ones before."""
