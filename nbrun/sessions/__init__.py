"""The runs of one notebook: starts, finds, cancels and closes them."""
