"""The operators as Python functions: documented, safe under autograd, and cheap to call."""
