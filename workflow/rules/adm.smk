"""Adversarial distribution matching: a student after DM + real images of its part → the final student."""


rule adm:
    """student after dm → student"""
    input:
        inputs_of(ROOT + "/train/adm-{digest}/manifest.json"),
    output:
        ROOT + "/train/adm-{digest}/manifest.json",
    log:
        ROOT + "/logs/train-adm-{digest}.log",
    priority: images_ahead(ROOT + "/train/adm-{digest}/manifest.json")
    resources:
        gpu=1,
    shell:
        "msd adm {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"
