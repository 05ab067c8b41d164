"""Command lines; heavy imports happen inside the commands."""
