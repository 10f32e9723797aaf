"""What strangers send, what gets into logs, and what must not get out."""
