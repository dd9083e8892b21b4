"""Junctions combine the gradients of the multimodal and the unimodal loss."""
