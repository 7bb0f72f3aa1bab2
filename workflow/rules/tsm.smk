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
    shell:
        "msd tsm {output} {CONFIGURATION} 2>&1 | tee {log}"
