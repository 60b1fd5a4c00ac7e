"""What nbrun needs from the kernel: its channels, its main thread, its waiting."""
