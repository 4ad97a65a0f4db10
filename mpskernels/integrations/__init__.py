"""Ways in from other libraries, each in a module of its own and imported only by who uses it."""
