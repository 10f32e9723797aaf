"""Sentences about the picture of a loop's tasks."""
