"""The algorithm, without mflux: where a step is tapped, when it is skipped, and what stands in for it.

`taps` sees inside a transformer. `gate` says what a gate is; `teacache`, `dualcache` and `placement` are gates, `seacache`
filters TeaCache's signal. `forecast` draws what stands in. `step_cache` keeps and answers, `stats` records.
"""
