"""Callbacks for other people's training loops. Each module imports its framework; this one imports nothing."""
