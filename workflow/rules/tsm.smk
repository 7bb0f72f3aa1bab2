"""Teacher score matching: teacher + training half → a smaller network, once for all its students."""


rule tsm:
    """teacher → smaller network"""
    input:
        inputs_of(ROOT + "/train/tsm-{digest}/manifest.json"),
    output:
        ROOT + "/train/tsm-{digest}/manifest.json",
    log:
        ROOT + "/logs/train-tsm-{digest}.log",
    priority: images_ahead(ROOT + "/train/tsm-{digest}/manifest.json")
    resources:
        gpu=1,
    shell:
        "msd tsm {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"
