"""Tables, pictures and confidence intervals."""
