"""Measuring: runs mflux's image commands in processes of their own, compares the pictures, and writes what one looks at.

A `series` takes `runs` by turns and the `ledger` keeps them; `results` makes figures of them and `report` draws. Nothing here is
imported by a run of mflux. What is heavy (matplotlib, scikit-image) is imported where it is used.
"""
