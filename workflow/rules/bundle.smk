"""Bundles: the students of a variant + their partition → one artifact that draws images on its own."""


rule bundle:
    """students, partition → bundle"""
    input:
        inputs_of(ROOT + "/bundles/{variant}-{digest}/manifest.json"),
    output:
        ROOT + "/bundles/{variant}-{digest}/manifest.json",
    log:
        ROOT + "/logs/bundles-{variant}-{digest}.log",
    shell:
        "msd bundle {wildcards.variant} $(dirname {output}) {CONFIGURATION} 2>&1 | keep {log}"
