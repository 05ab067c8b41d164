"""Quality of generated walks: frames, whole clips, closed loops."""
