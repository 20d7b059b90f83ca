"""Calibration: what a model does from step to step, and the numbers that follow from it.

`stages` is the whole, in order: `takeover` lends a command's model, `record` watches its plain generations, `traces` keeps
what was recorded, `fit` makes a polynomial and a profile of it, `propose` makes a variant and settings of them, `sweep` makes
the pictures, `coefficient_file` writes. Comparing, naming, choosing and showing pictures is `measure`'s.
"""
