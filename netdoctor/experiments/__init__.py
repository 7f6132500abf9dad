"""Experiments: runs of the captured training step on copies, each answering one question. The original is never touched."""
