"""The papers' experiments, for whoever has their data; needs the extra `cggm[papers]`."""
