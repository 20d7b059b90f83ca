"""The engine, without mflux: where a step is tapped, what stands in for a skipped one, and what is recorded.

`gate` says what decides (the gates are in `methods`), `taps` sees inside a transformer, `forecast` makes what stands in.
`step_cache` and `block_cache` keep and answer, `stats` records.
"""
