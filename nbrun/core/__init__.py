"""What a run is: pure data and rules. No I/O, no Jupyter."""
