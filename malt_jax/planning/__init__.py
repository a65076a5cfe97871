"""What a run needs, from programs compiled for devices that are absent."""
