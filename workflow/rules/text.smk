"""Text to image: captions, the frozen parts around the denoiser, and what they make of captions and images, once."""


rule captions:
    """images with classes → the same with captions"""
    input:
        inputs_of(ROOT + "/data/captions-{digest}/manifest.json"),
    output:
        ROOT + "/data/captions-{digest}/manifest.json",
    log:
        ROOT + "/logs/data-captions-{digest}.log",
    shell:
        "msd captions {output} {CONFIGURATION} 2>&1 | keep {log}"


rule autoencoder:
    """images → a small autoencoder"""
    input:
        inputs_of(ROOT + "/networks/autoencoder-{digest}/manifest.json"),
    output:
        ROOT + "/networks/autoencoder-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-autoencoder-{digest}.log",
    resources:
        gpu=1,
    shell:
        "msd autoencoder {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"


rule components:
    """captions, autoencoder, or a folder → autoencoder, tokenizer, text encoder"""
    input:
        inputs_of(ROOT + "/networks/components-{digest}/manifest.json"),
    output:
        ROOT + "/networks/components-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-components-{digest}.log",
    shell:
        "msd components {output} {CONFIGURATION} 2>&1 | keep {log}"


rule embeddings:
    """captions, text encoder → hidden states and pooled vectors"""
    input:
        inputs_of(ROOT + "/data/embeddings-{digest}/manifest.json"),
    output:
        ROOT + "/data/embeddings-{digest}/manifest.json",
    log:
        ROOT + "/logs/data-embeddings-{digest}.log",
    resources:
        gpu=1,
    shell:
        "msd embeddings {output} {CONFIGURATION} 2>&1 | keep {log}"


rule latents:
    """images, autoencoder → latents"""
    input:
        inputs_of(ROOT + "/data/latents-{digest}/manifest.json"),
    output:
        ROOT + "/data/latents-{digest}/manifest.json",
    log:
        ROOT + "/logs/data-latents-{digest}.log",
    resources:
        gpu=1,
    shell:
        "msd latents {output} {CONFIGURATION} 2>&1 | keep {log}"


# "captions" and the like are no names of sources of images
ruleorder: captions > data
ruleorder: embeddings > data
ruleorder: latents > data
