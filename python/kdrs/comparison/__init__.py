"""Runs side by side: quality, what was kept of the teacher, size, speed, and whether a difference is more than luck."""
