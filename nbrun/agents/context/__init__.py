"""What an agent sees of its run."""
