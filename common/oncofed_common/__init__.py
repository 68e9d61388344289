"""What a hospital and the coordinator agree on; imports nothing else of oncofed."""
