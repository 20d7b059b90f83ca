"""Tiny random-weight checkpoints of FLUX.1 and FLUX.2 Klein, and helpers that run mflux's real code on them.

Nothing is downloaded and nothing of mflux is copied. A checkpoint is a few megabytes of random numbers in the layout
that `mflux-save` writes; pipelines, weight loader, tokenizer loader, text encoders, denoising loop, VAE and metadata
writer are mflux's own, with smaller widths:

========================  ============================================================================================
`shrink`                  lowers literals inside mflux's functions, and puts them back
`flux1`, `flux2`          what has to be lowered or registered per family, and the checkpoints
`tokenizers`, `weights`   the two file formats a checkpoint is made of
`pictures`                the small input pictures (init image, mask, depth map, reference)
`commands`                run a console script's `main()` in this process and read what it saved
`cases`                   one `Case` per pipeline and mode: build it, generate with it, run its command
`workspace`               `Tiny`: a folder in which all of this is set up and each checkpoint is written once
`fixtures`                the pytest plugin: `tiny` (session) and `eager`
========================  ============================================================================================

    python -m tests.tiny FOLDER mflux-generate-flux2 --model flux2 ...     in a process of its own, see `__main__`

Importing this package imports neither mflux nor MLX.
"""
