"""The local model, which needs no key."""
