"""The world: everything there is to learn, generated from seeds over real content."""
