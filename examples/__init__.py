"""Examples, each a folder that can be copied; a package, so that no other `examples` that is installed hides them."""
