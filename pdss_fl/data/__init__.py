"""Examples, where they come from, how they are divided, and how a prompt is rendered."""
