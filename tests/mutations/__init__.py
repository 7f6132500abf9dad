"""Healthy programs with one fault put into each by a small edit of the source: is the fault among the first findings?"""
