"""Where the gradients of the multimodal and the unimodal loss meet."""
