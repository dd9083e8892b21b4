"""Real data, small models and a runner to compare balancing methods; needs the extra `cggm[demo]`."""
