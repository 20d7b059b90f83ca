"""Calibration: what a model does from step to step, and the numbers that follow from it.

`stages` is the whole, in order: `takeover` lends a command's model, `record` watches its plain generations, `traces` keeps
what was recorded, `fit` and `analysis` turn it into a polynomial and a profile and say how well each predicts an unseen
prompt, `propose` makes a variant and settings of them, `sweep` makes the pictures, `recommend` chooses, `coefficient_file`
writes, `charts` shows the fit. Comparing, naming and showing pictures is `measure`'s.
"""
