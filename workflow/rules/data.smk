"""Images: a registered source → training half and evaluation half, checked by sha256."""


rule data:
    """source → train and evaluation arrays"""
    input:
        inputs_of(ROOT + "/data/{source}-{digest}/manifest.json"),
    output:
        ROOT + "/data/{source}-{digest}/manifest.json",
    log:
        ROOT + "/logs/data-{source}-{digest}.log",
    priority: images_ahead(ROOT + "/data/{source}-{digest}/manifest.json")
    shell:
        "msd data {output} {CONFIGURATION} 2>&1 | keep {log}"
