"""Workflows of LlamaIndex."""
