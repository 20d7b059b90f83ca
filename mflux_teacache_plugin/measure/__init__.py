"""Measuring: runs mflux's image commands in processes of their own, compares the pictures, and writes what one looks at.

| module      | what it is for                                                                   |
|-------------|----------------------------------------------------------------------------------|
| `runs`      | one image command in a fresh process: steps computed, seconds, memory            |
| `child`     | the process of one run, which tells its peak memory                              |
| `probe`     | what a command would do, found out without loading weights                       |
| `series`    | one picture in several ways, by turns                                            |
| `suite`     | which pictures a bench makes, as a TOML file                                     |
| `ledger`    | keeps runs on disk, and finds them again when a bench was interrupted            |
| `metrics`   | how near one picture is to another: SSIM, PSNR, LPIPS where torch is             |
| `results`   | from runs to figures: a row for each setting, beside its baselines; CSV, JSON    |
| `plots`     | grids of pictures with their differences, bar charts, the frontier               |
| `report`    | one self-contained HTML file                                                     |
| `gallery`   | all that one looks at after a series, in one folder                              |
| `files`     | files that are whole or not there                                                |
| `machine`   | where figures were made                                                          |
| `shards`    | the same work on several machines, over MLX's distributed engine                 |

Nothing here is imported by a run of mflux. What is heavy (matplotlib, scikit-image) is imported where it is used.
"""
