"""Training: the methods, the loop, the workers, tuned learning rates and the file that remembers."""
