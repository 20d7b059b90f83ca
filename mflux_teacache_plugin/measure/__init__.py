"""Measuring: runs mflux's image commands in processes of their own, compares the pictures, and writes what one looks at.

| module       | what it is for                                                                     |
|--------------|------------------------------------------------------------------------------------|
| `runs`       | one image command in a fresh process: steps computed, seconds, memory              |
| `metrics`    | how near one picture is to another: SSIM, PSNR, LPIPS where torch is               |
| `shards`     | the same work on several machines, over MLX's distributed engine                   |

Nothing here is imported by a run of mflux. What is heavy (matplotlib, scikit-image) is imported where it is used.
"""
