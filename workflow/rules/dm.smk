"""Distribution matching: teacher + part (+ tsm, + regression pairs) → a one-step student, its fake score."""


rule pairs:
    """teacher → (noise, sample, class) pairs, not filtered by part"""
    input:
        inputs_of(ROOT + "/pairs/pairs-{digest}/manifest.json"),
    output:
        ROOT + "/pairs/pairs-{digest}/manifest.json",
    log:
        ROOT + "/logs/pairs-pairs-{digest}.log",
    priority: images_ahead(ROOT + "/pairs/pairs-{digest}/manifest.json")
    shell:
        "msd pairs {output} {CONFIGURATION} 2>&1 | keep {log}"


rule dm:
    """teacher, part → student"""
    input:
        inputs_of(ROOT + "/train/dm-{digest}/manifest.json"),
    output:
        ROOT + "/train/dm-{digest}/manifest.json",
    log:
        ROOT + "/logs/train-dm-{digest}.log",
    priority: images_ahead(ROOT + "/train/dm-{digest}/manifest.json")
    resources:
        gpu=1,
    shell:
        "msd dm {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"
