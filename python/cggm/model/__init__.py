"""The user's model as balanced training sees it."""
