"""Measure the quality of a version: measures, brute force, and simple baselines for comparison."""
