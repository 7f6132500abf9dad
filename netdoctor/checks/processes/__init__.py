"""Training in several processes: what must be alike on all of them, and is not."""
