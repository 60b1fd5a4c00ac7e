"""nbrun in a notebook: the only part that knows IPython, the kernel and widgets."""
