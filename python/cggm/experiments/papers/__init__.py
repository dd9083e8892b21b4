"""The papers' experiments, for users who have the data; needs the extra `cggm[papers]`."""
