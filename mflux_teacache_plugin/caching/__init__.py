"""The algorithm, without mflux: where a step is tapped, when it is skipped, and what stands in for it.

`taps` sees inside a transformer, `gate` decides, `step_cache` keeps and reuses, `stats` records.
"""
