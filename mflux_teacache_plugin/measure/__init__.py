"""Measuring: runs mflux's image commands in processes of their own, compares the pictures, and writes what one looks at.

| module      | what it is for                                                                   |
|-------------|----------------------------------------------------------------------------------|
| `runs`      | one image command in a fresh process: steps computed, seconds, memory            |
| `child`     | in that process: its peak memory, or what a command would do                     |
| `series`    | one picture in several ways, by turns                                            |
| `suite`     | which pictures a bench makes, as a TOML file                                     |
| `ledger`    | keeps runs on disk, and finds them again when a bench was interrupted            |
| `metrics`   | how near one picture is to another: SSIM, PSNR, LPIPS where torch is             |
| `results`   | from runs to figures: a row for each setting, beside its baselines; JSON         |
| `plots`     | grids of pictures with their differences, the frontier                           |
| `report`    | all that one looks at after a series, in one HTML file                           |
| `files`     | files that are whole or not there, JSON                                          |
| `machine`   | where figures were made                                                          |
| `shards`    | the same work on several machines, over MLX's distributed engine                 |

Nothing here is imported by a run of mflux. What is heavy (matplotlib, scikit-image) is imported where it is used.
"""
