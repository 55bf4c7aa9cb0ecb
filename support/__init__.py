"""support/ - the machinery behind the lessons. A file here imports support/ alone; no lesson needs reading it.

ground        cli            errors and flags for people, signals
              ops            attention, recomputation, norms: computed as the device likes it
              metrics        formulas of distances: PSNR, SSIM, Frechet, Inception score
over it       checkpoints    our files: safetensors, state.pt, atomic writes, locks, the log
              order          keyed noise, and the order in which clips are met
              tokenizers     the toy's words, CLIP's byte pairs, T5's unigrams
              toy_world      captioned clips drawn from a seed
              video_io       videos and images on disk, read and written
              folders        people's folders: which files are videos, captions, classes
              shards         WebDataset shards, read in place
              detectors      networks that look: LPIPS, I3D, Inception, C3D, the toy's classifier
              nearest        a clip read back as the toy world's nearest rendering
              drawing        contact sheets, curves, pages
on top        latent_cache   latents encoded once, in shards
              folder_report  what of a folder can be trained on
              eval_clips     which pixels are compared: windows, strides, crops, filters, JPEG
              pages          report.html, index.html
              trainer        ranks, optimizers, EMA, states on disk, faults, the log
"""
