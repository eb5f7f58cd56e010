"""
Tests of the core.
"""
