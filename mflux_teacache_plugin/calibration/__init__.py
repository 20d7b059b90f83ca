"""Calibration: what a model does from step to step, and the numbers that follow from it.

`traces` keeps what was recorded, `fit` turns it into a polynomial and a profile and says how well each foretells an unseen
prompt, `record` watches plain generations, `sweep` tries settings on prompts that no fit saw, `report` shows it all.
`fit` knows numbers only, `traces` files only; neither imports mflux.
"""
